# SPDX-License-Identifier: Apache-2.0
"""The autoencoders against diffusers' own classes, with small random weights."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from rfjax.encoders.images import pixels
from rfjax.encoders.images.autoencoder_kl import AutoencoderKLConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# A latent is 8 pixels wide, as with the released ones.
SMALL = {
    "block_out_channels": (4, 4, 4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 2,
    "sample_size": 32,
}
# As in the config.json of the released models.
RELEASED = {
    "sd3": {
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "sd1": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025},
}


def _randomise(network, *, seed):
    """Weights none of which is zero, so that no term can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            size = parameter[0].numel() if parameter.ndim > 1 else 8
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * size**-0.5
            )
    return network.eval()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Name -> (the network of diffusers, the folder of its pipeline)."""
    networks = {}
    for seed, (name, fields) in enumerate(RELEASED.items()):
        network = _randomise(diffusers.AutoencoderKL(**SMALL, **fields), seed=seed)
        folder = tmp_path_factory.mktemp(name)
        network.save_pretrained(folder / "vae")
        networks[name] = network, folder
    return networks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny decoder of 16 channels and its folder."""
    network = diffusers.AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
    )
    folder = tmp_path_factory.mktemp("tiny")
    _randomise(network, seed=9).save_pretrained(folder)
    return network, folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)


def _config(released, name="sd3", **fields):
    fields = {"subfolder": "vae", "device": "cpu", "batch_size": 2} | fields
    return AutoencoderKLConfig(path=str(released[name][1]), **fields)


def _posterior(network, images, *, shift=None):
    """As diffusers' train_dreambooth_sd3.py has it, but for mean and log variance."""
    processor = diffusers.image_processor.VaeImageProcessor()
    batch = processor.preprocess(images.astype(np.float32) / 255.0)
    with torch.no_grad():
        posterior = network.encode(batch).latent_dist
    scale = network.config.scaling_factor
    shift = (network.config.shift_factor or 0.0) if shift is None else shift
    mean = (posterior.mean - shift) * scale
    variance = posterior.var * scale**2
    return [t.permute(0, 2, 3, 1).numpy() for t in (mean, variance.log())]


@pytest.mark.parametrize("name", RELEASED)
def test_the_posterior_is_that_of_diffusers(released, images, name):
    network, _ = released[name]
    config = _config(released, name)
    codec = config.make(images)
    mean, log_variance = codec.encode_posterior(images)
    expected = _posterior(network, images)
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    np.testing.assert_allclose(log_variance, expected[1], atol=1e-5)
    assert mean.dtype == log_variance.dtype == np.float32
    assert mean.shape[1:] == config.latent_shape(16, 24)
    np.testing.assert_array_equal(codec.encode(images), mean)
    assert codec.has_variance
    mistakes = {
        "pixels in [0, 1]": codec.encode(images / 255.0),
        "BGR": codec.encode(images[..., ::-1]),
        "another shift": _posterior(network, images, shift=0.5)[0],
        "the scale twice": expected[0] * network.config.scaling_factor,
    }
    if network.config.shift_factor:
        mistakes["no shift"] = _posterior(network, images, shift=0.0)[0]
    for mistake, wrong in mistakes.items():
        assert np.abs(wrong - mean).max() > 1e-3, mistake
    assert codec.scaling_factor == network.config.scaling_factor
    assert codec.shift_factor == (network.config.shift_factor or 0.0)


def test_the_log_variance_is_clamped_as_in_diffusers(tmp_path, images):
    network = _randomise(diffusers.AutoencoderKL(**SMALL, **RELEASED["sd1"]), seed=0)
    with torch.no_grad():
        network.quant_conv.bias[4:6] = torch.tensor([-500.0, 500.0])
    network.save_pretrained(tmp_path)
    codec = AutoencoderKLConfig(path=str(tmp_path), device="cpu").make()
    _, log_variance = codec.encode_posterior(images)
    bounds = np.array([-30.0, 20.0]) + 2 * np.log(0.18215)
    np.testing.assert_allclose(log_variance[..., :2] - bounds, 0.0, atol=1e-5)
    assert np.ptp(log_variance[..., 2:]) > 0.1


@pytest.mark.parametrize("name", ["sd3", "sd1"])
def test_pictures_are_those_of_diffusers(released, images, name):
    network, _ = released[name]
    codec = _config(released, name).make()
    latents = codec.encode(images)
    scale, shift = network.config.scaling_factor, network.config.shift_factor or 0.0
    z = torch.from_numpy(latents).permute(0, 3, 1, 2) / scale + shift
    with torch.no_grad():
        values = network.decode(z).sample
        unshifted = network.decode(z - 0.5).sample
    processor = diffusers.image_processor.VaeImageProcessor()
    decoded = codec.decode(latents)
    assert decoded.dtype == np.uint8

    def difference(values):
        """Largest difference to the picture that diffusers makes of the values."""
        picture = processor.postprocess(values, output_type="np") * 255
        return np.abs(decoded - np.rint(picture)).max()

    assert difference(values) <= 1
    assert difference(unshifted) > 5


def test_a_draw_belongs_to_its_picture(released, images):
    codec = _config(released, posterior="sample").make()
    assert not codec.has_variance
    mean, log_variance = codec.encode_posterior(images)
    latents = codec.encode(images)
    noise = (latents - mean) / np.exp(0.5 * log_variance)
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    assert np.abs(noise[0] - noise[1]).max() > 1
    # Another batch, order, or process: the same draws but for the sums' rounding.
    again = _config(released, posterior="sample", batch_size=3).make()
    np.testing.assert_allclose(again.encode(images[::-1])[::-1], latents, atol=1e-5)
    np.testing.assert_allclose(again.encode(images[1:2]), latents[1:2], atol=1e-5)
    other = _config(released, posterior="sample", seed=1).make()
    assert np.abs(other.encode(images) - latents).max() > 0.1
    kept = _config(released, posterior="mean").make()
    np.testing.assert_array_equal(kept.encode(images), mean)
    assert not kept.has_variance


def test_large_pictures_are_cut_into_tiles(released, images):
    network, folder = released["sd3"]
    large = np.tile(images[:1], (1, 3, 2, 1))  # 48 x 48
    whole, tiled = _config(released), _config(released, tile_size=32)
    latents = tiled.make().encode(large)
    reference = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    reference.enable_tiling()
    reference.tile_sample_min_size, reference.tile_latent_min_size = 32, 4
    np.testing.assert_allclose(latents, _posterior(reference, large)[0], atol=1e-5)
    assert np.abs(whole.make().encode(large) - latents).max() > 1e-3
    small = whole.make().encode(images)
    np.testing.assert_array_equal(tiled.make().encode(images), small)
    assert tiled.make().decode(latents).shape == large.shape


def test_bfloat16_is_close(released, images):
    exact = _config(released).make().encode(images)
    rounded = _config(released, dtype="bfloat16").make().encode(images)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact)
    assert 1e-4 < error.max() < 0.2 * np.abs(exact).max()


def test_jax_computes_the_same(released, tiny, images):
    pytest.importorskip("torchax")
    fields = {"preview": str(tiny[1]), "tile_size": 32}
    here = _config(released, **fields).make()
    there = _config(released, device="jax", **fields).make()
    large = np.tile(images[:1], (1, 3, 2, 1))
    latents = here.encode(large)
    np.testing.assert_allclose(there.encode(large), latents, atol=1e-5)
    for pictures in ("decode", "decode_preview"):
        mine, theirs = (getattr(codec, pictures)(latents) for codec in (here, there))
        assert np.abs(mine.astype(int) - theirs).max() <= 1


def test_previews_are_those_of_the_tiny_decoder(released, tiny, images):
    network, folder = tiny
    codec = _config(released, preview=str(folder)).make()
    latents = codec.encode(images)
    with torch.no_grad():
        values = network.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample
    expected = pixels.to_bytes(values.permute(0, 2, 3, 1).numpy())
    previews = codec.decode_preview(latents).astype(int)
    assert np.abs(previews - expected).max() <= 1
    assert np.abs(previews - codec.decode(latents)).max() > 5
    without = _config(released).make()
    np.testing.assert_array_equal(
        without.decode_preview(latents), without.decode(latents)
    )
    four = _config(released, "sd1", preview=str(folder)).make()
    with pytest.raises(ValueError, match="preview must decode latents of 4 channels"):
        four.decode_preview(np.zeros((1, 2, 2, 4)))


def test_save_and_load(released, tiny, images, tmp_path):
    config = _config(released, preview=str(tiny[1]), posterior="sample", seed=3)
    codec = config.make()
    codec.save(tmp_path / "codec.npz")
    assert (tmp_path / "codec.npz").stat().st_size < 4000  # no weights
    loaded = AutoencoderKLConfig.load(tmp_path / "codec.npz")
    np.testing.assert_array_equal(loaded.encode(images), codec.encode(images))
    loaded.save(tmp_path / "again.npz")
    again = (tmp_path / "again.npz").read_bytes()
    assert again == (tmp_path / "codec.npz").read_bytes()


def test_other_weights_are_refused(released, tmp_path):
    network, folder = released["sd3"]
    shutil.copytree(folder, tmp_path / "p")
    config = AutoencoderKLConfig(path=str(tmp_path / "p"), subfolder="vae")
    config.make().save(tmp_path / "codec.npz")
    AutoencoderKLConfig.load(tmp_path / "codec.npz")
    other = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        other.encoder.conv_in.bias[0] += 1e-3
    other.save_pretrained(tmp_path / "p" / "vae")
    with pytest.raises(ValueError, match="must be those that encoded the data set"):
        AutoencoderKLConfig.load(tmp_path / "codec.npz")
    # The same weights with another scale make other latents too.
    network.save_pretrained(tmp_path / "p" / "vae")
    AutoencoderKLConfig.load(tmp_path / "codec.npz")
    path = tmp_path / "p" / "vae" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"scaling_factor": 1.5}))
    with pytest.raises(ValueError, match="must be those that encoded the data set"):
        AutoencoderKLConfig.load(tmp_path / "codec.npz")
    network.save_pretrained(tmp_path / "p" / "vae")
    moved = (tmp_path / "p").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="path of codec autoencoder_kl must be"):
        AutoencoderKLConfig.load(tmp_path / "codec.npz")
    AutoencoderKLConfig.load(tmp_path / "codec.npz", [str(tmp_path), str(moved)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/none"}, "must be a folder or the name of a model on the hub"),
        ({"subfolder": "unet"}, "must be in the subfolder unet of"),
        ({"subfolder": ""}, "must be in a folder with config.json"),
        ({"posterior": "mode"}, "posterior must be one of variance, sample, mean"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, jax"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tile_size": 40}, "tile_size must be divisible by 32 .* got 40"),
    ],
)
def test_wrong_fields(released, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_config(released), **fields).make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name of .* must be AutoencoderKL"),
        ({"in_channels": 4}, "in_channels of .* must be 3, got 4"),
        ({"latents_mean": [0.0] * 16}, "latents_mean of .* must be None"),
        ({"layers_per_block": 2}, "must hold those of a AutoencoderKL|got none for"),
    ],
)
def test_wrong_autoencoders(released, tmp_path, fields, message):
    shutil.copytree(released["sd3"][1] / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        AutoencoderKLConfig(path=str(tmp_path / "vae")).make()


def test_wrong_pictures_and_latents(released, images, tmp_path):
    config = _config(released)
    codec = config.make()
    with pytest.raises(
        ValueError, match="divisible by 8 .* 30 x 48; choose .* 32 x 48"
    ):
        config.latent_shape(30, 48)
    with pytest.raises(ValueError, match="divisible by 8 for this .* 14 x 24"):
        codec.encode(images[:, :14])
    with pytest.raises(ValueError, match=r"must be \[B, H, W, 3\]"):
        codec.encode(images[..., 0])
    with pytest.raises(ValueError, match=r"must be \[B, h, w, 16\]"):
        codec.decode(np.zeros((1, 4, 4, 4)))
    (tmp_path / "codec.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="does not name an autoencoder"):
        AutoencoderKLConfig.load(tmp_path / "codec.npz")
    np.savez(tmp_path / "codec.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match="does not name an autoencoder"):
        AutoencoderKLConfig.load(tmp_path / "codec.npz")
