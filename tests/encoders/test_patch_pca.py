# SPDX-License-Identifier: Apache-2.0
"""The patch codec against SciPy's singular value decomposition."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from rfjax.encoders.images.patch_pca import PatchPCAConfig
from rfjax.errors import MissingFileError, UserError


@pytest.fixture(scope="module")
def images():
    """Smooth pictures: patch components of very different strength."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (24, 5, 5, 3))
    rows = np.linspace(0, 4, 16)
    weights = np.maximum(0, 1 - np.abs(rows[:, None] - np.arange(5)))
    pictures = np.einsum("hi,wj,bijc->bhwc", weights, weights, coarse)
    return np.clip(pictures + 0.02 * rng.standard_normal(pictures.shape), -1, 1)


def patches_of(images, size):
    """[N, size * size * 3], cut out one by one."""
    return np.array(
        [
            image[top : top + size, left : left + size].ravel()
            for image in images
            for top in range(0, image.shape[0], size)
            for left in range(0, image.shape[1], size)
        ]
    )


def test_components_are_those_of_an_svd(images):
    codec = PatchPCAConfig(patch_size=4, channels=5, whitening=0.0).make(images)
    patches = patches_of(images, 4)
    centred = patches - patches.mean(axis=0)
    _, singular, vectors = scipy.linalg.svd(centred, full_matrices=False)
    # Components are unique up to sign.
    cosines = np.abs(np.sum(codec.basis * vectors[:5].T, axis=0))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-4)
    np.testing.assert_allclose(codec.mean, patches.mean(axis=0), atol=1e-6)
    spread = codec.encode(images).std(axis=(0, 1, 2)) / codec.gain
    np.testing.assert_allclose(spread, singular[:5] / np.sqrt(len(patches)), rtol=1e-4)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_have_mean_zero_and_unit_variance(images, whitening):
    codec = PatchPCAConfig(patch_size=4, channels=8, whitening=whitening).make(images)
    latents = codec.encode(images)
    assert latents.shape == (24, 4, 4, 8)
    assert latents.dtype == np.float32
    assert latents.mean() == pytest.approx(0.0, abs=1e-4)
    assert latents.var() == pytest.approx(1.0, rel=1e-4)
    # Channels keep a power of the components' own spread.
    patches = patches_of(images, 4)
    singular = scipy.linalg.svd(patches - patches.mean(axis=0), compute_uv=False)[:8]
    spread = latents.std(axis=(0, 1, 2))
    np.testing.assert_allclose(
        spread / spread[0], (singular / singular[0]) ** (1 - whitening), rtol=1e-3
    )


def test_decoding_loses_exactly_the_dropped_components(images):
    codec = PatchPCAConfig(patch_size=4, channels=6).make(images)
    patches = patches_of(images, 4)
    singular = scipy.linalg.svd(patches - patches.mean(axis=0), compute_uv=False)
    dropped = np.sum(singular[6:] ** 2) / patches.size
    decoded = codec.decode(codec.encode(images)) / 127.5 - 1.0
    # uint8 adds a twelfth of a squared step.
    expected = dropped + (2 / 255) ** 2 / 12
    assert np.mean((decoded - images) ** 2) == pytest.approx(expected, rel=0.03)


def test_all_components_give_the_picture_back(images):
    pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    codec = PatchPCAConfig(patch_size=2, channels=12, whitening=1.0).make(pixels)
    np.testing.assert_array_equal(codec.decode(codec.encode(pixels)), pixels)
    few = PatchPCAConfig(patch_size=2, channels=2, whitening=1.0).make(pixels)
    assert not np.array_equal(few.decode(few.encode(pixels)), pixels)


def test_float_and_uint8_pictures_agree(images):
    codec = PatchPCAConfig(patch_size=4, channels=6).make(images)
    pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    as_float = pixels.astype(np.float64) / 127.5 - 1.0
    np.testing.assert_allclose(codec.encode(pixels), codec.encode(as_float), atol=1e-5)


def test_save_and_load(images, tmp_path):
    codec = PatchPCAConfig(patch_size=4, channels=6).make(images)
    codec.save(tmp_path / "codec.npz")
    loaded = PatchPCAConfig.load(tmp_path / "codec.npz")
    for field in dataclasses.fields(codec):
        np.testing.assert_array_equal(
            getattr(loaded, field.name), getattr(codec, field.name)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["codec.npz"]


def test_pictures_of_several_sizes_are_fitted_together(images):
    wide, high = list(images[:9, :8]), list(images[9:, :, :12])
    codec = PatchPCAConfig(patch_size=4, channels=5, whitening=0.0).make(wide + high)
    patches = np.concatenate([patches_of(np.stack(some), 4) for some in (wide, high)])
    centred = patches - patches.mean(axis=0)
    _, _, vectors = scipy.linalg.svd(centred, full_matrices=False)
    cosines = np.abs(np.sum(codec.basis * vectors[:5].T, axis=0))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-4)
    np.testing.assert_allclose(codec.mean, patches.mean(axis=0), atol=1e-6)
    squares = PatchPCAConfig(patch_size=4, channels=5, whitening=0.0).make(images)
    assert np.abs(squares.mean - codec.mean).max() > 1e-3
    latents = [codec.encode(np.stack(some)) for some in (wide, high)]
    assert [each.shape[1:] for each in latents] == [(2, 4, 5), (4, 3, 5)]
    together = np.concatenate([each.ravel() for each in latents])
    assert together.mean() == pytest.approx(0.0, abs=1e-4)
    assert together.var() == pytest.approx(1.0, rel=1e-4)
    assert codec.decode(latents[0]).shape == (9, 8, 16, 3)
    config = PatchPCAConfig(patch_size=4, channels=5)
    assert config.latent_shape(8, 16) == (2, 4, 5)
    with pytest.raises(ValueError, match="patch_size 4 must divide .* 8 x 18"):
        config.latent_shape(8, 18)


def test_fitting_is_deterministic(images):
    first = PatchPCAConfig(patch_size=4, channels=6).make(images)
    second = PatchPCAConfig(patch_size=4, channels=6).make(images.copy())
    np.testing.assert_array_equal(first.basis, second.basis)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4, "channels": 49}, "at most .* = 48, got 49"),
        ({"patch_size": 4, "channels": 0}, "channels must be at least 1"),
        (
            {"patch_size": 0, "channels": 4},
            "patch_size must be between 1 and 64, got 0",
        ),
        ({"patch_size": 3, "channels": 4}, "patch_size 3 must divide .* 16 x 16"),
        ({"patch_size": 4, "channels": 4, "whitening": 1.5}, "whitening .* got 1.5"),
    ],
)
def test_bad_options(images, options, message):
    with pytest.raises(ValueError, match=message):
        PatchPCAConfig(**options).make(images)


def test_bad_images(images):
    with pytest.raises(ValueError, match=r"must be \[B, H, W, 3\], got shape"):
        PatchPCAConfig(patch_size=4, channels=4).make(images[..., :2])
    with pytest.raises(ValueError, match="must be uint8, or float .* got int64"):
        PatchPCAConfig(patch_size=4, channels=4).make(np.zeros((2, 8, 8, 3), np.int64))
    with pytest.raises(ValueError, match="fewer than 4 independent"):
        PatchPCAConfig(patch_size=4, channels=4).make(np.zeros((2, 8, 8, 3)))


def test_bad_latents_and_files(images, tmp_path):
    codec = PatchPCAConfig(patch_size=4, channels=6).make(images)
    with pytest.raises(ValueError, match=r"must be \[B, h, w, 6\]"):
        codec.decode(np.zeros((1, 4, 4, 5)))
    with pytest.raises(FileNotFoundError):
        PatchPCAConfig.load(tmp_path / "codec.npz")
    (tmp_path / "codec.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is not a patch codec"):
        PatchPCAConfig.load(tmp_path / "codec.npz")
    (tmp_path / "codec.npz").write_bytes(b"PK" + bytes(99))
    with pytest.raises(ValueError, match="is not a patch codec"):
        PatchPCAConfig.load(tmp_path / "codec.npz")
    sound = {"patch_size": 2, "mean": np.ones(12), "basis": np.ones((12, 3))}
    np.savez(tmp_path / "codec.npz", **sound, gain=np.ones(3))
    PatchPCAConfig.load(tmp_path / "codec.npz")
    for gain in (np.ones(4), np.zeros(3), np.full(3, np.nan), np.array([{}] * 3)):
        np.savez(tmp_path / "codec.npz", **sound, gain=gain)
        with pytest.raises(ValueError, match="is not a patch codec"):
            PatchPCAConfig.load(tmp_path / "codec.npz")
    np.savez(tmp_path / "codec.npz", other=np.zeros(1))
    with pytest.raises(ValueError, match="is not a patch codec"):
        PatchPCAConfig.load(tmp_path / "codec.npz")


def test_the_codec_of_another_data_set_is_taken_as_it_is(tmp_path):
    rng = np.random.default_rng(3)
    images = rng.uniform(-1, 1, (8, 16, 16, 3))
    fitted = PatchPCAConfig(patch_size=4, channels=6).make(images)
    fitted.save(tmp_path / "codec.npz")
    config = PatchPCAConfig(patch_size=4, channels=6, path=str(tmp_path / "codec.npz"))
    taken = config.make(images**3)
    for name in ("mean", "basis", "gain"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(fitted, name))
    taken.save(tmp_path / "again.npz")  # and so data sets are known to be alike
    assert (tmp_path / "again.npz").read_bytes() == (
        tmp_path / "codec.npz"
    ).read_bytes()
    other = PatchPCAConfig(patch_size=4, channels=6).make(images**3)  # control
    assert np.abs(other.basis - fitted.basis).max() > 1e-3
    with pytest.raises(UserError, match=r"patch_size 4 and channels 5, got 4 and 6 in"):
        dataclasses.replace(config, channels=5).make(images)
    with pytest.raises(MissingFileError, match=r"codec.path .*npz, which is no file"):
        dataclasses.replace(config, path=str(tmp_path / "no.npz")).make(images)
