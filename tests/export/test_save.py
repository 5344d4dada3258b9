# SPDX-License-Identifier: Apache-2.0
import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from rfjax.evaluation.sample import SampleConfig
from rfjax.export import load, save, tensor_file
from rfjax.export.rounding import Rounding
from rfjax.models import make_model
from rfjax.models.mmdit import torch_names

WEIGHTS_FILE = "transformer/diffusion_pytorch_model.safetensors"
DIFFUSERS_FILES = (
    "README.md",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    WEIGHTS_FILE,
)


@pytest.fixture
def config(make_config):
    return make_config(qk_norm=True)


def assert_only_the_run(workdir):
    """Nothing was written beside it, half or whole."""
    assert [path.name for path in workdir.parent.iterdir()] == [workdir.name]


def test_diffusers_folder(config, make_run, make_leaves, tmp_path):
    workdir = make_run(config)
    report = save.export_run(workdir, out=tmp_path / "export")
    assert report.files == DIFFUSERS_FILES
    written = [path for path in report.out.rglob("*") if path.is_file()]
    assert report.num_bytes == sum(path.stat().st_size for path in written)
    assert report.step == 4
    assert report.warnings == ()
    leaves = make_leaves(config, seed=1)  # the moving average
    assert report.num_params == sum(leaf.size for leaf in leaves.values())
    with safe_open(report.out / WEIGHTS_FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        bias = file.get_tensor("transformer_blocks.0.attn.to_k.bias")
        np.testing.assert_array_equal(bias, leaves["blocks/image/key/bias"][0])
    scheduler = json.loads((report.out / DIFFUSERS_FILES[1]).read_text())
    assert scheduler["shift"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "run"]


@pytest.mark.parametrize(
    ("layout", "weights", "seed"), [("diffusers", "raw", 0), ("sd3", "ema", 1)]
)
def test_export_then_import_is_exact(
    make_config, make_run, make_leaves, tmp_path, layout, weights, seed
):
    config = make_config(
        depth=3, qk_norm=True, position_scale=256 / 768, dual_attention_blocks=1
    )
    workdir = make_run(config)
    out = tmp_path / "export"
    save.export_run(workdir, out=out, layout=layout, weights=weights)
    opened = load.open_weights(out, layout=layout)
    imported, params = opened.config, opened.read_params()
    assert {**vars(imported), "compute_dtype": "float32"} == vars(config)
    leaves, other = make_leaves(config, seed=seed), make_leaves(config, seed=1 - seed)
    for path, leaf in leaves.items():
        found = params
        for key in path.split("/"):
            found = found[key]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, leaf, err_msg=path)
        assert (found != other[path]).any()


@pytest.mark.parametrize("dtype", tensor_file.DTYPES)
def test_dtypes(config, make_leaves, tmp_path, dtype):
    leaves = make_leaves(config)
    path = tmp_path / "model.safetensors"
    save.write_single_file(
        leaves.__getitem__, make_model(config), path, dtype=dtype, layout="sd3"
    )
    stored = load_file(path)
    numpy_dtype = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(numpy_dtype)}
    np.testing.assert_array_equal(
        stored[f"{torch_names.PREFIX.sd3}final_layer.linear.weight"],
        leaves["final/linear/kernel"].T.astype(numpy_dtype),
    )
    assert (
        load.open_weights(path, layout="sd3").config.grid_tokens == config.grid_tokens
    )


def test_big_models_are_spread_over_files_with_an_index(config, make_leaves, tmp_path):
    leaves, limit = make_leaves(config), 1_000_000
    save.write_diffusers(
        leaves.__getitem__, make_model(config), tmp_path / "many", shard_bytes=limit
    )
    save.write_diffusers(leaves.__getitem__, make_model(config), tmp_path / "one")
    index = json.loads(
        (tmp_path / "many/diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    paths = sorted((tmp_path / "many").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [path.name for path in paths]
    assert len(paths) > 2
    assert (
        paths[0].name
        == f"diffusion_pytorch_model-00001-of-{len(paths):05d}.safetensors"
    )
    together = {}
    for path in paths:
        tensors = load_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit
        assert {index["weight_map"][name] for name in tensors} == {path.name}
        together |= tensors
    whole = load_file(tmp_path / "one/diffusion_pytorch_model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert together.keys() == whole.keys()
    for name, tensor in together.items():
        np.testing.assert_array_equal(tensor, whole[name])
    assert load.open_weights(tmp_path / "many").config.depth == config.depth


def test_each_leaf_is_read_once_and_on_demand(make_config, make_leaves, tmp_path):
    config = make_config(depth=3)
    leaves, read = make_leaves(config), []

    def read_leaf(path):
        read.append(path)
        return leaves[path]

    stream = save._stream(
        read_leaf, make_model(config), layout="sd3", rounding=Rounding("float32")
    )
    next(stream)
    assert read == []  # the computed positions
    next(stream)
    assert read == ["patch_embed/kernel"]
    for _ in stream:
        pass
    assert sorted(read) == sorted(leaves)


def test_older_steps_and_shift_into_an_empty_folder(config, make_run, tmp_path):
    workdir = make_run(config, steps=(2, 4), sample=SampleConfig(shift=3.0))
    (tmp_path / "export").mkdir()
    report = save.export_run(workdir, out=tmp_path / "export", step=2)
    assert report.step == 2
    scheduler = json.loads((report.out / DIFFUSERS_FILES[1]).read_text())
    assert scheduler["shift"] == 3.0


def test_masked_text_is_told(config, make_run, tmp_path):
    workdir = make_run(config, data={"context_mask": True})
    report = save.export_run(workdir, out=tmp_path / "export")
    assert "mask over padded text" in report.warnings[0]
    assert report.warnings[0] in (report.out / "README.md").read_text()


def test_other_formulations_get_no_scheduler(config, make_run, tmp_path):
    workdir = make_run(config, objective="eps/linear")
    report = save.export_run(workdir, out=tmp_path / "export")
    assert "does not predict the velocity" in report.warnings[0]
    assert DIFFUSERS_FILES[1] not in report.files


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layout": "onnx"}, "format must be one of diffusers, sd3, got 'onnx'"),
        ({"weights": "best"}, "weights must be one of ema, raw, got 'best'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, .*got 'int8'"),
        ({"step": 3}, r"checkpoint 3 cannot be read.*choose one of the steps \[4\]"),
    ],
)
def test_unknown_choices(config, make_run, tmp_path, choice, message):
    workdir = make_run(config)
    with pytest.raises(ValueError, match=message):
        save.export_run(workdir, out=tmp_path / "export", **choice)
    assert_only_the_run(workdir)


def test_unfinished_save(config, make_run, tmp_path):
    workdir = make_run(config)
    folder = workdir / "checkpoints"
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    with pytest.raises(ValueError, match="interrupted and never finished"):
        save.export_run(workdir, out=tmp_path / "export", step=4)
    assert_only_the_run(workdir)


def test_folder_that_is_not_empty(config, make_run, tmp_path):
    workdir = make_run(config)
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        save.export_run(workdir, out=workdir)
    assert_only_the_run(workdir)


def test_not_a_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        save.export_run(tmp_path, out=tmp_path / "export")


def test_config_that_is_none(config, make_run, tmp_path):
    workdir = make_run(config)
    (workdir / "config.json").write_text('{"model": {"depth": 2, "deep": 3}}')
    with pytest.raises(
        ValueError, match="must be the config of a run of this version: .*deep"
    ):
        save.export_run(workdir, out=tmp_path / "export")


def test_weights_that_are_no_numbers(config, make_run, tmp_path):
    def spoil(leaves):
        leaves["blocks/text/mlp_in/kernel"][0, 5, 7] = np.nan

    workdir = make_run(config, change=spoil)
    with pytest.raises(ValueError, match="NaN or infinity in blocks/text/mlp_in/kern"):
        save.export_run(workdir, out=tmp_path / "export")
    assert_only_the_run(workdir)


@pytest.mark.parametrize(
    ("dtype", "value", "remedy", "fits"),
    [
        ("float16", 1e5, "float32 or bfloat16", "bfloat16"),
        ("bfloat16", 3.4e38, "float32", "float32"),
        ("float16", 3.4e38, "float32", "float32"),
    ],
)
def test_weights_too_large_for_a_dtype(
    config, make_leaves, tmp_path, dtype, value, remedy, fits
):
    leaves = make_leaves(config)
    leaves["final/linear/bias"][0] = value

    def write(name, dtype):
        save.write_diffusers(
            leaves.__getitem__, make_model(config), tmp_path / name, dtype=dtype
        )

    message = (
        rf"dtype {dtype} cannot hold the weights final/linear/bias: .* {value:.3g}"
    )
    with pytest.raises(
        ValueError, match=re.escape(f"; export as {remedy}.") + "$"
    ) as e:
        write("not", dtype)
    assert re.match(message.replace("+", r"\+"), str(e.value))
    write("fits", fits)


def test_weights_too_small_for_a_dtype_are_counted(config, make_run, tmp_path):
    def shrink(leaves):
        for leaf in leaves.values():  # all that is rounded is well above 6.1e-5
            leaf[...] = np.where(leaf < 0, -1.0, 1.0)
        leaves["final/linear/bias"][:5] = 1e-9, -2e-8, 1e-6, 7e-8, 0.0
        leaves["blocks/image/query/kernel"][0, 0, :2] = 1e-7, 1e-40

    workdir = make_run(config, change=shrink)

    def export(dtype):
        out = tmp_path / dtype
        return save.export_run(workdir, out=out, weights="raw", dtype=dtype)

    report = export("float16")
    # Multiples of 2^-24 = 5.96e-8: 7e-8 becomes 1, off by 14.9 %; 1e-7 becomes 2, by
    # 19.2 %; 1e-6 becomes 17. 1e-9, 2e-8 and 1e-40 are nearest to 0.
    (warning,) = report.warnings
    assert f"of {report.num_params:,} weights: 3 became 0" in warning
    assert "3 became denormal (below 6.1e-05) and changed by up to 19 %;" in warning
    assert warning.endswith("export as float32 or bfloat16 to keep them.")
    assert f"warning: {warning}" in str(report)

    (warning,) = export("bfloat16").warnings
    assert "became 0" not in warning
    assert "1 became denormal (below 1.18e-38" in warning
    assert warning.endswith("export as float32 to keep them.")
    assert export("float32").warnings == ()


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"qk_norm": False}, "unexpected: .*last_block/text/query_norm/scale"),
        ({"depth": 3}, r"wrong shape: blocks/image/key/bias \(1, 128\) for \(2, 192\)"),
        ({"depth": 1}, "unexpected: blocks/image/key/bias"),
    ],
)
def test_checkpoint_of_another_model(config, make_run, tmp_path, claim, message):
    workdir = make_run(config)
    fields = json.loads((workdir / "config.json").read_text())
    fields["model"] |= claim
    (workdir / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        save.export_run(workdir, out=tmp_path / "export")
    assert_only_the_run(workdir)


def test_missing_leaf(config, make_run, tmp_path):
    def remove(leaves):
        del leaves["final/linear/bias"]

    workdir = make_run(config, change=remove)
    with pytest.raises(ValueError, match="missing: final/linear/bias"):
        save.export_run(workdir, out=tmp_path / "export")


@pytest.mark.parametrize("damage", ["no metadata", "cut off arrays"])
def test_damaged_checkpoint(config, make_run, tmp_path, damage):
    workdir = make_run(config)
    state = workdir / "checkpoints" / "4" / "state"
    if damage == "no metadata":
        (state / "_METADATA").unlink()
    else:
        for path in state.rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="checkpoint 4 .* is damaged"):
        save.export_run(workdir, out=tmp_path / "export")
    assert_only_the_run(workdir)
