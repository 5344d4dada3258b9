# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from rfjax.export import load, save
from rfjax.models import make_model
from rfjax.models.embeddings import position_table
from rfjax.models.mmdit import MMDiTConfig, torch_names

MODEL = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def exported(make_config, make_leaves, tmp_path):
    """A diffusers folder of a model of depth 2 with qk-norm."""
    config = make_config(qk_norm=True)
    folder = tmp_path / "pipeline" / "transformer"
    folder.parent.mkdir()
    save.write_diffusers(make_leaves(config).__getitem__, make_model(config), folder)
    return folder


def edit(folder, change):
    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})


def claim(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", torch_names.LAYOUTS)
def test_import_then_export_gives_the_same_bytes(
    make_config, make_leaves, tmp_path, layout, dtype
):
    def write(leaves, config, folder):
        folder.mkdir()
        if layout == "diffusers":
            save.write_diffusers(
                leaves.__getitem__, make_model(config), folder / "model", dtype=dtype
            )
            return folder / "model" / MODEL
        save.write_single_file(
            leaves.__getitem__,
            make_model(config),
            folder / "file",
            dtype=dtype,
            layout="sd3",
        )
        return folder / "file"

    config = make_config(
        depth=4, qk_norm=True, position_scale=0.5, dual_attention_blocks=2
    )
    first = write(make_leaves(config), config, tmp_path / "first")
    weights = load.open_weights(first, layout=layout)
    imported, params = weights.config, weights.read_params()
    leaves = {path: _at(params, path) for path in make_model(imported).shapes()}
    second = write(leaves, imported, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()
    other = write(make_leaves(config, seed=9), config, tmp_path / "other")
    assert first.read_bytes() != other.read_bytes()


def _at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_sources(exported):
    """The pipeline, its transformer or the file: all the same."""
    for source in (exported.parent, exported, exported / MODEL):
        assert load.open_weights(source).config.depth == 2


def test_what_is_inferred(make_config, make_leaves, tmp_path):
    config = make_config(
        depth=1,
        patch_size=4,
        latent_channels=5,
        context_dim=7,
        pooled_dim=9,
        grid_tokens=5,
        max_grid_tokens=8,
        position_scale=0.3,
    )
    save.write_diffusers(
        make_leaves(config).__getitem__, make_model(config), tmp_path / "model"
    )
    imported = load.open_weights(tmp_path / "model").config
    assert {**vars(imported), "compute_dtype": "float32"} == vars(config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("grid_tokens", "max_grid_tokens", "scale"),
    [
        (16, 192, 1.0),
        (32, 96, 0.25),
        (48, 64, 1 / 3),
        (31, 40, 0.7),
        (7, 7, 1.0),
        (1, 1, 1.0),
        (50, 48, 0.5),
    ],
)
def test_positions_are_recognised(
    make_config, make_leaves, tmp_path, grid_tokens, max_grid_tokens, scale, dtype
):
    config = make_config(
        depth=1,
        grid_tokens=grid_tokens,
        max_grid_tokens=max_grid_tokens,
        position_scale=scale,
    )
    path = tmp_path / "model.safetensors"
    save.write_single_file(
        make_leaves(config).__getitem__,
        make_model(config),
        path,
        dtype=dtype,
        layout="sd3",
    )
    imported = load.open_weights(path, layout="sd3").config
    assert imported.grid_tokens == grid_tokens
    assert imported.max_grid_tokens == max_grid_tokens
    assert imported.position_scale == scale


def test_other_parts_of_a_single_file_are_left_alone(
    make_config, make_leaves, tmp_path
):
    config = make_config()
    path = tmp_path / "model.safetensors"
    save.write_single_file(
        make_leaves(config).__getitem__, make_model(config), path, layout="sd3"
    )
    tensors = load_file(path) | {"first_stage_model.x": np.zeros(3, np.float32)}
    save_file(tensors, path)
    assert load.open_weights(path, layout="sd3").config.depth == 2


# -- Bad input ---------------------------------------------------------------------


def test_unknown_format(exported):
    with pytest.raises(ValueError, match="format must be one of diffusers, sd3"):
        load.open_weights(exported, layout="flux")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load.open_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors"):
        load.open_weights(tmp_path)


def test_the_other_layout(exported):
    with pytest.raises(ValueError, match="use format 'diffusers'"):
        load.open_weights(exported / MODEL, layout="sd3")


def test_no_sd3_model(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must hold pos_embed.proj.weight"):
        load.open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt"])
def test_pickles_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x80\x04N.")
    for source in (path, tmp_path):
        with pytest.raises(
            ValueError, match=r"is a pickle.*torch.load\(path, weights_"
        ):
            load.open_weights(source)


def test_pickle_in_disguise(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        load.open_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_file(exported, keep):
    path = exported / MODEL
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load.open_weights(exported)


def test_missing_shard(exported):
    index = {"weight_map": {"a": "b-00001-of-00002.safetensors"}}
    (exported / f"{MODEL}.index.json").write_text(json.dumps(index))
    with pytest.raises(
        FileNotFoundError, match="b-00001-of-00002.safetensors does not"
    ):
        load.open_weights(exported)


def test_several_files_without_an_index(exported):
    (exported / "other.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"got {MODEL}, other.safetensors"):
        load.open_weights(exported)


def test_missing_unexpected_and_misshapen(exported):
    def change(tensors):
        del tensors["proj_out.bias"]
        tensors["transformer_blocks.0.attn.to_x.bias"] = np.zeros(2, np.float32)
        name = "transformer_blocks.1.ff.net.2.bias"
        tensors[name] = tensors[name][:-1].copy()

    edit(exported, change)
    with pytest.raises(
        ValueError,
        match="missing: proj_out.bias; unexpected: transformer_blocks.0.attn.to_x.bias"
        r"; of the wrong shape: .*blocks.1.ff.net.2.bias \(127,\) for \(128,\)",
    ):
        load.open_weights(exported)


def test_missing_block(exported):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("transformer_blocks.1.")]:
            del tensors[name]

    edit(exported, change)
    with pytest.raises(ValueError, match="got width 128 and 1 blocks"):
        load.open_weights(exported)


def test_missing_embedding(exported):
    edit(exported, lambda tensors: tensors.pop("context_embedder.weight"))
    with pytest.raises(
        ValueError, match="context_embedder.weight with 2 dims, got none"
    ):
        load.open_weights(exported)


@pytest.mark.parametrize(
    ("dual", "message"), [([1], r"got \[1\] of 3"), ([0, 2], r"got \[0, 2\] of 3")]
)
def test_dual_attention_elsewhere(make_config, make_leaves, tmp_path, dual, message):
    config, folder = make_config(depth=3), tmp_path / "model"
    save.write_diffusers(make_leaves(config).__getitem__, make_model(config), folder)

    def change(tensors):
        for block in dual:
            name = f"transformer_blocks.{block}.attn2.to_out.0.weight"
            tensors[name] = np.zeros((192, 192), np.float32)

    edit(folder, change)
    with pytest.raises(ValueError, match=f"dual-attention blocks first.*{message}"):
        load.open_weights(folder)


def test_part_of_a_dual_attention(exported):
    def change(tensors):
        tensors["transformer_blocks.0.attn2.to_out.0.weight"] = np.zeros(
            (128, 128), np.float32
        )

    edit(exported, change)
    claim(exported, dual_attention_layers=[0])
    with pytest.raises(ValueError, match=r"missing: .*blocks.0.attn2.norm_k.weight"):
        load.open_weights(exported)


@pytest.mark.parametrize("name", ["proj_out.bias", "pos_embed.pos_embed"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_no_numbers(exported, name, value):
    def change(tensors):
        tensors[name][..., 1] = value

    edit(exported, change)
    with pytest.raises(ValueError, match=f"NaN or infinity in {name}"):
        load.open_weights(exported).read_params()


def test_integer_weights(exported):
    def change(tensors):
        tensors["proj_out.bias"] = tensors["proj_out.bias"].astype(np.int32)

    edit(exported, change)
    with pytest.raises(ValueError, match="got I32 for proj_out.bias"):
        load.open_weights(exported)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, "num_layers is 3, the weights say 2"),
        ({"qk_norm": None}, "qk_norm is None, the weights say 'rms_norm'"),
        ({"dual_attention_layers": [0]}, r"dual_attention_layers is \[0\]"),
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name is 'FluxTransformer"),
        ({"in_channels": 4, "pos_embed_max_size": 96}, "in_channels.*pos_embed_max_s"),
    ],
)
def test_config_that_contradicts_the_weights(exported, fields, message):
    claim(exported, **fields)
    with pytest.raises(ValueError, match=message):
        load.open_weights(exported)


def test_harmless_claims(exported):
    claim(exported, out_channels=None, sample_size=128, _diffusers_version="0.0")
    assert load.open_weights(exported).config.depth == 2


def test_config_that_is_no_json(exported):
    (exported / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json must be JSON"):
        load.open_weights(exported)


@pytest.mark.parametrize("kind", ["learned", "shifted", "one entry", "constant"])
def test_positions_of_another_kind_are_kept(exported, tmp_path, kind):
    """Stored, cropped as they are, and given back byte for byte."""
    before = load_file(exported / MODEL)["pos_embed.pos_embed"]

    def change(tensors):
        table = tensors["pos_embed.pos_embed"]
        if kind == "learned":
            table[...] = np.random.default_rng(0).standard_normal(table.shape)
        elif kind == "shifted":
            table += 0.01
        elif kind == "constant":
            table[...] = 0.5
        else:
            table[0, 77, 3] += 0.001

    edit(exported, change)
    claim(exported, sample_size=10)
    weights = load.open_weights(exported)
    stored = load_file(exported / MODEL)["pos_embed.pos_embed"]
    np.testing.assert_array_equal(weights.positions, stored[0])
    assert (weights.positions != before[0]).any()
    assert weights.config.grid_tokens == 5

    path = tmp_path / "positions.npy"
    np.save(path, weights.positions)
    config = dataclasses.replace(weights.config, position_file=str(path))
    crop = position_table(
        2, 3, width=128, grid_tokens=4, max_grid_tokens=11, file=str(path)
    )
    whole = stored.reshape(11, 11, 128)
    np.testing.assert_array_equal(crop.reshape(2, 3, 128), whole[4:6, 4:7])
    params = traverse_util.flatten_dict(weights.read_params(), sep="/")
    save.write_diffusers(params.__getitem__, make_model(config), tmp_path / "again")
    again, first = (load_file(f / MODEL) for f in (tmp_path / "again", exported))
    assert again.keys() == first.keys()
    for name, tensor in again.items():
        assert tensor.tobytes() == first[name].tobytes(), name
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (exported / "config.json").read_text()
    )


def test_computed_positions_are_not_kept(exported):
    assert load.open_weights(exported).positions is None


# -- The model section of a config -------------------------------------------------


def test_fields_left_out_come_from_the_weights(exported):
    weights = load.open_weights(exported)
    given = {"remat": "dots", "qk_norm": True}
    fields = load.merge_model_fields(weights, given, position_file="p.npy")
    config = MMDiTConfig(**fields)
    assert config == dataclasses.replace(weights.config, remat="dots")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": 3}, "model.depth is 3, the weights say 2"),
        ({"qk_norm": False, "context_dim": 7}, "context_dim is 7.*qk_norm is False"),
        ({"grid_tokens": 9}, "model.grid_tokens is 9, the weights say 4"),
        ({"dual_attention_blocks": 1}, "dual_attention_blocks is 1, the weights say 0"),
    ],
)
def test_fields_that_contradict_the_weights(exported, given, message):
    with pytest.raises(ValueError, match=message):
        load.merge_model_fields(
            load.open_weights(exported), given, position_file="p.npy"
        )
