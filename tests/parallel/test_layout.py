# SPDX-License-Identifier: Apache-2.0
"""The told layout against the one that arrays really get."""

import json
import math
from pathlib import Path

import jax
import pytest

from rfjax import main
from rfjax.parallel import layout
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.parallel.sharding import state_shardings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make_layout(tiny_model):
    def make(**axes):
        model = tiny_model()
        params = model.abstract_params()
        state = (jax.ShapeDtypeStruct((), "int32"), params, params)
        return layout.lay_out(params, state, dims=model.dims, mesh=MeshConfig(**axes))

    return make


def test_layout_equals_that_of_arrays(tiny_model, make_layout):
    axes = {"slice": 1, "data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    told = make_layout(**axes)
    params = tiny_model().abstract_params()
    mesh = make_mesh(MeshConfig(**axes))
    shapes = jax.tree.map(
        lambda leaf, sharding: sharding.shard_shape(leaf.shape),
        params,
        state_shardings(params, params=params, dims=tiny_model().dims, mesh=mesh),
    )
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    expected = jax.tree.leaves(shapes, is_leaf=is_shape)
    assert [p.shard_shape for p in told.parameters] == expected
    assert told.parameter_bytes == 4 * sum(map(math.prod, expected))
    assert told.state_bytes == 2 * told.parameter_bytes + 4
    assert make_layout(data=8).parameter_bytes > 3 * told.parameter_bytes  # control


def test_explain_gives_the_rule_of_every_dim(make_layout):
    text = layout.explain(make_layout(data=2, fsdp=4, tensor=2, sequence=2))
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "mesh slice=1 data=2 fsdp=4 tensor=2 sequence=2: 32 devices" in rows
    kernel = rows["blocks/image/mlp_in/kernel"]
    assert "layers, embed, mlp" in kernel
    assert "fsdp=4+tensor=2" in kernel
    assert "tensor" not in rows["blocks/image/mlp_out/bias"]  # control
    assert "fsdp = 4" in rows["embed"]
    assert "gradients summed into shards" in rows["embed"]
    assert "sequence = 2" in rows["image_tokens"]
    assert "whole" in rows["text_tokens"]
    assert "slice * data * fsdp = 8" in rows["batch"]


def test_an_axis_that_divides_nothing_is_refused(make_layout):
    with pytest.raises(ValueError, match=r"mesh\.fsdp must divide dim 'embed'"):
        make_layout(data=1, fsdp=7)


def test_command_needs_no_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out, picture = tmp_path / "layout.json", tmp_path / "layout.png"
    args = ["layout", f"--config={ROOT}/configs/sd3.py:38", f"--json={out}"]
    assert main.run([*args, "--devices=64", f"--picture={picture}"]) == 0
    told = json.loads(out.read_text())
    assert told["num_devices"] == 64
    assert told["mesh"]["data"] == 4
    # 8.06B parameters of four bytes; without modulation biases split sixteen ways.
    assert told["parameter_bytes_per_device"] == pytest.approx(
        8.06e9 * 4 / 16, rel=0.01
    )
    assert told["state_bytes_per_device"] == pytest.approx(
        4 * told["parameter_bytes_per_device"]
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "blocks/image/mlp_in/kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices=64", "--topology=v5p:4x4x4"], "either --devices or --topology"),
        (["--devices=0"], "--devices must be at least 1, got 0"),
        (["--devices=24"], "needs a multiple of 16 devices, 24 are"),
        (["--topology=2*v5p:4x4x4"], "got 1 for 2; set --config.mesh.slice=2"),
    ],
)
def test_devices_that_do_not_fit(flags, message, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main.run(["layout", f"--config={ROOT}/configs/sd3.py:38", *flags]) == 1
    assert message in capsys.readouterr().err
