# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from rfjax.export import checks, save
from rfjax.models import make_model
from rfjax.models.mmdit import torch_names as names

BOTH_LAYOUTS = pytest.mark.parametrize("layout", names.LAYOUTS)


@pytest.mark.parametrize(
    ("layout", "qk_norm", "dual", "num_keys"),
    # Counted in diffusers 0.42.1 and its converter from Stability's layout.
    [
        ("diffusers", False, 0, 95),
        ("diffusers", True, 0, 107),
        ("sd3", False, 0, 71),
        ("sd3", True, 0, 83),
        ("sd3", True, 1, 89),
    ],
)
def test_number_of_keys_at_depth_3(make_config, layout, qk_norm, dual, num_keys):
    config = make_config(depth=3, qk_norm=qk_norm, dual_attention_blocks=dual)
    assert len(save.file_shapes(make_model(config), layout=layout)) == num_keys


@BOTH_LAYOUTS
@pytest.mark.parametrize(("depth", "dual"), [(1, 0), (3, 0), (3, 2), (4, 2)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_leaf_goes_out_and_comes_back(
    make_config, make_leaves, layout, depth, dual, qk_norm
):
    config = make_config(depth=depth, qk_norm=qk_norm, dual_attention_blocks=dual)
    leaves = make_leaves(config)
    back = {path: np.full_like(leaf, np.nan) for path, leaf in leaves.items()}
    for tensor in names.torch_tensors(
        config, make_model(config).shapes(), layout=layout
    ):
        array = tensor.from_leaves([leaves[path] for path in tensor.paths])
        assert array.shape == tensor.shape
        parts = tensor.to_leaves(array)
        for path, leaf in zip(tensor.paths, parts, strict=True):
            target = back[path] if tensor.block is None else back[path][tensor.block]
            assert np.isnan(target).all()  # nothing is written twice
            target[...] = leaf
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back[path], leaf)


def _tensor(config, name, layout="sd3"):
    name = names.PREFIX.sd3 + name if layout == "sd3" else name
    tensors = names.torch_tensors(config, make_model(config).shapes(), layout=layout)
    (tensor,) = (tensor for tensor in tensors if tensor.name == name)
    return tensor


@BOTH_LAYOUTS
def test_patch_embedding_is_a_convolution_over_row_and_column(make_config, layout):
    config = make_config(patch_size=2, latent_channels=3)
    kernel = np.arange(12 * 128, dtype=np.float32).reshape(12, 128)
    name = {"sd3": "x_embedder.proj.weight", "diffusers": "pos_embed.proj.weight"}
    convolution = _tensor(config, name[layout], layout).from_leaves([kernel])
    row, column, channel, output = 1, 0, 2, 77
    flat = (row * 2 + column) * 3 + channel
    assert convolution[output, channel, row, column] == kernel[flat, output]


def test_qkv_rows_are_query_then_key_then_value(make_config):
    tensor = _tensor(make_config(), "joint_blocks.1.context_block.attn.qkv.bias")
    fused = tensor.from_leaves([np.full(128, fill) for fill in (1.0, 2.0, 3.0)])
    np.testing.assert_array_equal(fused, np.repeat([1.0, 2.0, 3.0], 128))


@pytest.mark.parametrize(
    ("layout", "name", "halves"),
    [
        ("diffusers", "norm_out.linear.bias", "scale shift"),
        ("diffusers", "transformer_blocks.1.norm1_context.linear.bias", "scale shift"),
        ("sd3", "final_layer.adaLN_modulation.1.bias", "shift scale"),
        ("sd3", "joint_blocks.1.context_block.adaLN_modulation.1.bias", "shift scale"),
    ],
)
def test_order_of_two_way_modulations(make_config, layout, name, halves):
    ours = np.repeat(np.array(["shift", "scale"]), 128)
    theirs = _tensor(make_config(), name, layout).from_leaves([ours])
    assert f"{theirs[0]} {theirs[-1]}" == halves


def test_tensors_of_one_stack_follow_each_other(make_config):
    config = make_config(depth=4, dual_attention_blocks=2)
    tensors = names.torch_tensors(config, make_model(config).shapes(), layout="sd3")
    runs = [t.paths for i, t in enumerate(tensors) if t.paths != tensors[i - 1].paths]
    assert len(runs) == len(set(runs))


def test_check_shapes_lists_what_is_wrong():
    with pytest.raises(
        ValueError,
        match=r"F must hold .*missing: a; unexpected: z; "
        r"of the wrong shape: b \(2,\) for \(3,\)",
    ):
        checks.check_shapes({"b": (2,), "z": (1,)}, {"a": (1,), "b": (3,)}, where="F")
