# SPDX-License-Identifier: Apache-2.0
"""Dtypes that weights are stored in, prefixes that tools give them, other models."""

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rfjax.export import load, save
from rfjax.models import make_model

PREFIX = "model.diffusion_model."
QUERY = "joint_blocks.0.x_block.attn.qkv.weight"


@pytest.fixture
def network(make_config, make_leaves, tmp_path):
    """Stability's tensors of a small model, without a prefix."""
    config = make_config()
    leaves = make_leaves(config)
    path = tmp_path / "network"
    save.write_single_file(leaves.__getitem__, make_model(config), path, layout="sd3")
    return {name.removeprefix(PREFIX): t for name, t in load_file(path).items()}


def read(tmp_path, tensors, layout="sd3"):
    """Opens tensors as a file; gives them back as rfjax reads them."""
    path = tmp_path / "model.safetensors"
    save_file({name: each.contiguous() for name, each in tensors.items()}, path)
    weights = load.open_weights(path, layout=layout)
    params, again = weights.read_params(), {}

    def read_leaf(name):
        leaf = params
        for key in name.split("/"):
            leaf = leaf[key]
        return leaf

    out = tmp_path / "again.safetensors"
    save.write_single_file(read_leaf, make_model(weights.config), out, layout=layout)
    again = load_file(out)
    return {name.removeprefix(PREFIX): tensor for name, tensor in again.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name != "pos_embed":  # computed, not read
            torch.testing.assert_close(found[name], tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefix",
    ["", "diffusion_model.", PREFIX, "transformer.", "model.", "module._orig_mod."],
)
def test_prefixes(network, tmp_path, prefix):
    found = read(tmp_path, {prefix + name: t for name, t in network.items()})
    assert_equal(found, network)


def test_two_networks_in_one_file(network, tmp_path):
    average = {f"ema.{name}": torch.zeros_like(t) for name, t in network.items()}
    own = {PREFIX + name: t for name, t in network.items()}
    assert_equal(read(tmp_path, own | average), network)
    other = {f"model.{name}": t for name, t in network.items()}
    with pytest.raises(ValueError, match=r"got several, .* 'ema\.', 'model\.'; keep"):
        read(tmp_path, other | average)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_dtypes(network, tmp_path, dtype):
    """PyTorch's own conversion is the truth."""
    stored = {name: tensor.to(dtype) for name, tensor in network.items()}
    assert_equal(read(tmp_path, stored), stored)
    weights = load.open_weights(tmp_path / "model.safetensors", layout="sd3")
    assert (weights.config.grid_tokens, weights.positions) == (4, None)


def test_float64_beyond_float32(network, tmp_path):
    stored = {name: tensor.double() for name, tensor in network.items()}
    stored["context_embedder.bias"][0] = -1e300
    with pytest.raises(ValueError, match="context_embedder.bias .* fit into float32"):
        read(tmp_path, stored)


def quantise(network, dtype, *, by_row, suffix):
    """Matrices of the blocks as float8 with scales, and what they stand for."""
    stored, expected = {}, {}
    for name, tensor in network.items():
        stored[name] = expected[name] = tensor.half()
        if tensor.ndim != 2:
            continue
        dims = {"dim": 1, "keepdim": True} if by_row else {}
        scale = tensor.abs().amax(**dims) / torch.finfo(dtype).max
        stored[name] = (tensor / scale).to(dtype)
        stored[name.removesuffix(".weight") + suffix] = scale
        expected[name] = stored[name].float() * scale
        assert (expected[name] - tensor).abs().max() < 0.13 * tensor.abs().max()
    return stored, expected


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scaled_float8(network, tmp_path, dtype, suffix, by_row):
    stored, expected = quantise(network, dtype, by_row=by_row, suffix=suffix)
    stored["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    stored[QUERY.replace("weight", "scale_input")] = torch.tensor(3.0)
    assert_equal(read(tmp_path, {PREFIX + n: t for n, t in stored.items()}), expected)
    # Without its scale, the same matrix would be another.
    assert (stored[QUERY].float() - expected[QUERY]).abs().max() > 1


def test_scales_that_do_not_fit(network, tmp_path):
    stored, _ = quantise(
        network, torch.float8_e4m3fn, by_row=False, suffix=".scale_weight"
    )
    scale = QUERY.replace("weight", "scale_weight")
    wrong = {
        "lacks that of joint_blocks.0.x_block.attn.qkv": {scale: None},
        "a number or one for each row of .* of shape \\(5,\\)": {scale: torch.ones(5)},
        f"has a scale for .*{QUERY}, which must .* got F16": {
            QUERY: network[QUERY].half()
        },
        "has a scale for .*x.weight, which must .* got none": {
            "x.scale_weight": torch.tensor(1.0)
        },
    }
    for message, change in wrong.items():
        changed = {n: t for n, t in (stored | change).items() if t is not None}
        with pytest.raises(ValueError, match=message.replace("of joint", "of .*joint")):
            read(tmp_path, changed)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            QUERY,
            torch.ones(3, 2, dtype=torch.int8),
            "got I8 for .* are quantised; take",
        ),
        (QUERY, torch.ones(3, 2, dtype=torch.bool), "got BOOL for"),
        (f"{QUERY}.absmax", torch.ones(3), "quantised ones; take those in fl"),
        (f"{QUERY}.quant_state.bitsandbytes__nf4", torch.ones(3), "quantised ones"),
        (
            "joint_blocks.0.x_block.attn.qkv.comfy_quant",
            torch.ones(3),
            "quantised ones",
        ),
        ("joint_blocks.0.x_block.attn.qkv.lora_A.weight", torch.ones(3, 2), "a LoRA"),
        ("controlnet_blocks.0.weight", torch.ones(3), "a ControlNet"),
    ],
)
def test_networks_with_something_else(network, tmp_path, name, tensor, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, network | {name: tensor})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"], "a LoRA"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA"),
        (["lycoris_x.lokr_w1"], "a LoRA"),
        (["double_blocks.0.img_attn.qkv.weight", "x_embedder.weight"], "FLUX"),
        (["single_transformer_blocks.0.attn.to_q.weight"], "FLUX"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a U-Net, as that of St"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a U-Net"),
        (["pos_embed.proj.weight", "adaln_single.linear.weight"], "PixArt"),
        (["joint_transformer_blocks.0.attn.to_q.weight"], "AuraFlow"),
        (
            ["encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.x"],
            "autoencoder",
        ),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder"),
        (["encoder.block.0.layer.0.SelfAttention.k.weight"], "a text encoder"),
        (["something.weight"], "must hold .* choose weights of this backbone"),
    ],
)
@pytest.mark.parametrize("layout", ["diffusers", "sd3"])
def test_other_models(tmp_path, names, message, layout):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, {name: torch.ones(2) for name in names}, layout=layout)
    assert "\n" not in str(error.value)


def test_models_for_inpainting(network, tmp_path):
    name = "x_embedder.proj.weight"
    wider = torch.cat([network[name], network[name], network[name][:, :1]], dim=1)
    with pytest.raises(ValueError, match="got 7 read and 3 predicted, as in a model f"):
        read(tmp_path, network | {name: wider})


def test_numpy_and_torch_agree_on_float8():
    """Of all 256 values: what is read by ml_dtypes was written by PyTorch."""
    codes = np.arange(256, dtype=np.uint8)
    for ours, theirs in (
        (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
        (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    ):
        expected = torch.from_numpy(codes).view(theirs).float().numpy()
        np.testing.assert_array_equal(codes.view(ours).astype(np.float32), expected)
