# SPDX-License-Identifier: Apache-2.0
"""Every evaluator and metric writer keeps its contract; the shortest second run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax import checkpoint, commands
from rfjax.commands import job
from rfjax.config import Config, from_config_dict
from rfjax.config_files import load_config_file
from rfjax.evaluation import EVALUATORS, Subject
from rfjax.flow import formulations
from rfjax.models import make_model
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.parallel.sharding import MeshLayout
from rfjax.train.metric_writers import METRIC_WRITERS

# -- A second evaluator and a second metric writer: this is all that they take ---------


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """The root mean square of all parameters."""

    every_steps: int = 2

    def make(self, subject):
        return Norm(every_steps=self.every_steps, num_params=subject.model.num_params)


@dataclasses.dataclass(frozen=True)
class Norm:
    every_steps: int
    num_params: int
    name: str = "norm"

    def __call__(self, params, *, check_in=lambda: None):
        check_in()
        squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
        return {"rms": float(jnp.sqrt(squares / self.num_params))}

    def compile(self, params):
        """Nothing needs to be compiled ahead."""


@dataclasses.dataclass(frozen=True)
class CsvConfig:
    file: str = "metrics.csv"

    def open(self, workdir):
        return Csv((workdir / self.file).open("a"))


@dataclasses.dataclass(frozen=True)
class Csv:
    stream: object

    def write(self, step, metrics):
        self.stream.writelines(f"{step},{name},{v}\n" for name, v in metrics.items())

    def close(self):
        self.stream.close()


@pytest.fixture(scope="module")
def debug_fields():
    fields = load_config_file("configs/debug.py")
    fields["model"] |= {"depth": 1}  # compiles faster
    fields["train"] |= {"num_steps": 4, "log_every_steps": 1}
    fields["optimizer"] |= {"warmup_steps": 1, "cooldown_steps": 1}
    fields["validation"] |= {"every_steps": 4, "num_samples": 16, "batch_size": 16}
    return fields


def test_second_members_measure_and_write(tmp_path, monkeypatch, debug_fields):
    monkeypatch.setitem(EVALUATORS, "norm", NormConfig)
    monkeypatch.setitem(METRIC_WRITERS, "csv", CsvConfig)
    extra = {"evaluators": [{"kind": "norm"}], "metric_writers": [{"kind": "csv"}]}
    config = from_config_dict(debug_fields | extra)
    commands.train(config, workdir=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    measured = {line["step"]: line for line in found if "norm/rms" in line}
    assert list(measured) == [2, 4]
    assert measured[2]["norm/rms"] > 0
    assert measured[4]["norm/rms"] != measured[4]["norm_ema/rms"]
    assert "val/loss" in measured[4]
    assert "val/loss" not in measured[2]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert f"2,norm/rms,{measured[2]['norm/rms']}" in rows
    assert len(rows) == sum(len(line) - 1 for line in found)
    result = commands.evaluate(tmp_path / "run")
    evaluated = result.metrics
    assert f"norm/rms  {evaluated['norm/rms']:.4g}" in str(result).splitlines()
    assert evaluated["norm/rms"] == pytest.approx(measured[4]["norm/rms"], rel=1e-6)


def test_a_list_of_kinds_names_what_is_wrong(debug_fields):
    with pytest.raises(ValueError, match=r"evaluators must be a list of sections"):
        from_config_dict(debug_fields | {"evaluators": {"kind": "validation"}})
    for section, message in (
        (
            {"kind": "fid"},
            r"evaluators\[0\]\.kind must be one of validation, got 'fid'",
        ),
        (
            {"kind": "validation", "evry": 1},
            r"evaluators\[0\]\.evry is not a config fi",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            from_config_dict(debug_fields | {"evaluators": [section]})


# -- The contract ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(debug_fields):
    config: Config = from_config_dict(debug_fields)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    return Subject(
        model=make_model(config.model, layout=MeshLayout(mesh)),
        formulation=formulations.parse(config.objective),
        mesh=mesh,
        data=config.data,
    )


@pytest.mark.parametrize("kind", EVALUATORS)
def test_evaluators_keep_the_contract(kind, subject):
    evaluator = EVALUATORS[kind]().make(subject)
    assert evaluator.name.isidentifier()
    assert evaluator.every_steps >= 1
    params = jax.jit(subject.model.init)(jax.random.key(0))
    evaluator.compile(params)
    calls = []
    metrics = evaluator(params, check_in=lambda: calls.append(1))
    assert calls
    assert metrics
    assert all(isinstance(value, int | float) for value in metrics.values())

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(params, check_in=stop)


@pytest.mark.parametrize("kind", METRIC_WRITERS)
def test_metric_writers_keep_the_contract(kind, tmp_path):
    writer = METRIC_WRITERS[kind]().open(tmp_path)
    if writer is None:
        pytest.skip("its package is not installed")
    writer.write(1, {"train/loss": 1.0, "val/loss": float("nan")})
    writer.close()
    assert any(tmp_path.rglob("*"))


# -- On a mesh -------------------------------------------------------------------------


def test_parameters_are_read_back_in_shards(tmp_path, debug_fields, monkeypatch):
    """Eight devices hold an eighth each of every kernel, and the loss is the same."""
    config = from_config_dict(debug_fields | {"mesh": {"data": 1, "fsdp": 8}})
    commands.train(config, workdir=tmp_path / "run")
    held = {}

    def watched(workdir, abstract, **options):
        params = restore_params(workdir, abstract, **options)
        kernel = params["last_block"]["image"]["mlp_in"]["kernel"]
        held["shard"] = kernel.addressable_shards[0].data.shape
        held["whole"] = kernel.shape
        return params

    restore_params = checkpoint.restore_params
    monkeypatch.setattr(checkpoint, "restore_params", watched)
    sharded = commands.evaluate(tmp_path / "run").metrics
    assert held["whole"] == (64, 256)
    assert held["shard"] == (8, 256)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "devices", lambda *args: jax.local_devices()[:1])
    alone = commands.evaluate(tmp_path / "run").metrics
    assert held["shard"] == held["whole"]
    for name in sharded:
        if name.startswith("val"):
            np.testing.assert_allclose(sharded[name], alone[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "num_devices", "expected"),
    [
        ({"fsdp": 8}, 8, {"data": 1, "fsdp": 8}),  # its own
        ({"data": 1, "fsdp": -1}, 4, {"data": 1, "fsdp": 4}),
        (
            {"data": 1, "fsdp": -1},
            6,
            {"data": 3, "fsdp": 2},
        ),  # 6 divides no width of 64
        ({"data": 1, "tensor": -1}, 3, {"data": 3, "fsdp": 1}),
        ({"fsdp": 8}, 2, {"data": 1, "fsdp": 2}),  # too few for its own
        ({"fsdp": 8}, 1, {"data": 1, "fsdp": 1}),
    ],
)
def test_a_run_is_read_on_whatever_devices_there_are(
    mesh, num_devices, expected, debug_fields, monkeypatch
):
    devices = jax.devices()[:num_devices]
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    monkeypatch.setattr(jax, "devices", lambda *args: devices)
    made = job.make_reading_mesh(from_config_dict(debug_fields | {"mesh": mesh}))
    assert dict(made.shape) == {"slice": 1, "tensor": 1, "sequence": 1, **expected}


def test_a_damaged_checkpoint_is_not_evaluated(tmp_path, debug_fields):
    commands.train(from_config_dict(debug_fields), workdir=tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "4"
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        commands.evaluate(tmp_path / "run")
