# SPDX-License-Identifier: Apache-2.0
"""Configs: what they resolve to, and how every wrong one is refused."""

import json
import math
from pathlib import Path

import pytest

from rfjax import commands, schema
from rfjax.commands.job import make_mesh_for
from rfjax.commands.memory import check_memory
from rfjax.config import config_to_dict, from_config_dict, load_config
from rfjax.config_files import apply_overrides, load_config_file

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = {
    "debug": "configs/debug.py",
    "emoji": "configs/emoji.py",
    "openclipart": "configs/openclipart.py",
    "sd3": "configs/sd3.py:38",
    "sd3_1024": "configs/sd3_1024.py:38",
}


def load(name="debug", *overrides):
    fields = load_config_file(str(ROOT / SHIPPED[name]))
    return from_config_dict(apply_overrides(fields, overrides))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_resolve_to_their_golden_files(name):
    """A change here is a change of a default: put the new file into the review."""
    resolved = config_to_dict(load(name))
    assert resolved == json.loads((GOLDEN / f"{name}.json").read_text())


def test_resolved_config_reads_back_equal(tmp_path):
    config = load("debug", "--config.data.latent_shape=[4, 4, 16]")
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    assert load_config(tmp_path) == config
    assert load_config(tmp_path) != load("debug")  # control


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dpth=3", r"model\.dpth is not a config field; did you mean model\.dep"),
        ("optimiser=3", r"optimiser is not a config field; did you mean optimizer"),
        ("zzz=3", r"zzz is not a config field; the fields are seed, objective"),
        ("model.depth=0", r"model\.depth must be at least 1, got 0"),
        ("model.depth=two", r"model\.depth must be a whole number, got 'two' \(s"),
        ("model.qk_norm=1", r"model\.qk_norm must be true or false, got 1 \(int\)"),
        (
            "data.kind=csv",
            r"data\.kind must be one of shards, mixture, synthetic, got 'csv'",
        ),
        ("data.latent_shape=[1, 2]", r"data\.latent_shape must be a list of 3"),
        ("data.caption_dropout=2.0", r"caption_dropout must be between 0 and 1"),
        ("objective=rf/lognrm(0,1)", r"rf/lognorm"),
        (
            "objective=rf/lognorm(0,-1)",
            r"objective rf/lognorm\(0,-1\): lognorm standard",
        ),
        ("data={'kind':'shards','path':'gs://b/x'}", r"data\.path must be a path on t"),
        ("shift=0.0", r"shift must be positive, got 0\.0"),
        ("seed=-1", r"seed must be in \[0, 2\^32\), got -1"),
        ("mesh.fsdp=0", r"mesh\.fsdp must be at least 1, or -1"),
        ("mesh.fsdp=-1", r"mesh may leave one axis at -1, got slice=1 data=-1 fsdp=-1"),
        ("mesh.tensor=3", r"mesh\.tensor must divide the number of heads, 2, got 3"),
        ("optimizer.learning_rate=-1.0", r"optimizer\.learning_rate must be positive"),
        ("optimizer.b2=1.0", r"optimizer\.b2 must be in \[0, 1\)"),
        ("optimizer.cooldown=cosine", r"optimizer\.cooldown must be one of linear, sq"),
        ("optimizer.warmup_steps=50", r"must fit into train\.num_steps = 60, got 50"),
        ("ema.decay=1.5", r"ema\.decay must be in \[0, 1\), got 1\.5"),
        ("train.num_steps=0", r"train\.num_steps must be at least 1, got 0"),
        ("checkpoint.keep=0", r"checkpoint\.keep must be at least 1, got 0"),
        ("validation.batch_size=0", r"validation\.batch_size must be at least 1"),
        ("sample.solver=rk4", r"sample\.solver must be one of .*euler, heun"),
        ("sample.grid=log", r"sample\.grid must be one of uniform, karras, diffusers"),
        ("sample.dynamic_shift.max_shift=x", r"dynamic_shift\.max_shift must be a num"),
        ("sample.num_steps=0", r"sample\.num_steps must be at least 1, got 0"),
        ("train=3", r"train must be a section of fields, got 3"),
        ("train.num_steps.x=3", r"num_steps is a field, not a section"),
        ("train.num_steps", r"must have the form --config\.FIELD=VALUE"),
    ],
)
def test_wrong_fields_are_named_with_rule_and_value(override, message):
    with pytest.raises(ValueError, match=message):
        load("debug", f"--config.{override}")


def test_a_grid_goes_with_its_objective():
    grid = "--config.sample.grid=diffusers"
    with pytest.raises(ValueError, match=r"sample\.grid must not be diff.* eps/cos"):
        load("debug", "--config.objective=eps/cos", grid)
    assert load("debug", grid).sample.grid == "diffusers"


def test_a_section_that_is_left_out_may_be_filled(tmp_path):
    fields = config_to_dict(load("debug"))
    assert fields["sample"]["dynamic_shift"] is None
    override = "--config.sample.dynamic_shift.max_shift=1.0"
    config = from_config_dict(apply_overrides(fields, [override]))
    assert config.sample.shift_for(4096) == pytest.approx(math.e)
    assert from_config_dict(config_to_dict(config)) == config
    with pytest.raises(ValueError, match=r"sample\.shift must be 1 beside .*got 3\.0"):
        load("debug", override, "--config.sample.shift=3.0")


def write(path, text):
    path.write_text("from ml_collections import ConfigDict\n" + text)
    return str(path)


def test_config_files_return_dicts_of_either_kind_and_numbers_of_numpy(tmp_path):
    plain = write(
        tmp_path / "plain.py",
        "import numpy as np\n"
        "MODEL = ConfigDict({'depth': np.int64(2)})\n"
        "FIELDS = {'model': MODEL, 'train': {'num_steps': np.int32(1500)},\n"
        "          'data': {'kind': 'synthetic'}, 'shift': np.float64(3.0)}\n"
        "get_config = lambda: FIELDS\n",
    )
    config_dict = write(
        tmp_path / "config_dict.py",
        "get_config = lambda: ConfigDict(\n"
        "    {'model': {'depth': 2}, 'train': {'num_steps': 1500},\n"
        "     'data': {'kind': 'synthetic'}, 'shift': 3.0})\n",
    )
    read = from_config_dict(load_config_file(plain))
    assert read == from_config_dict(load_config_file(config_dict))
    assert (read.model.depth, read.shift) == (2, 3.0)
    other = apply_overrides(load_config_file(plain), ["--config.model.depth=3"])
    assert from_config_dict(other) != read  # control


def test_the_argument_of_a_config_file_is_its_own_default_if_absent():
    for name in ("sd3", "sd3_1024", "bench", "sweeps/emoji_study"):
        load_config_file(f"{ROOT}/configs/{name}.py")
    path = ROOT / "configs" / "sd3.py"
    assert load_config_file(str(path)) == load_config_file(f"{path}:38")
    assert load_config_file(str(path)) != load_config_file(f"{path}:24")  # control


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/debug.py:3", r"debug\.py:3 must not have an argument.*takes none"),
        ("configs/sweeps/emoji_depth.py:3", r"must not have an argument"),
        ("configs/debug.py:", r"debug\.py: must have an argument behind the colon"),
        ("tests/golden/debug.json:3", r"only a Python file takes one; write --conf"),
        ("configs/bench.py:two", r"ARG must be a depth, got 'two'"),
        ("configs", r"configs is a folder; name a file"),
    ],
)
def test_wrong_arguments_of_config_files_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_config_file(str(ROOT / name))


def test_a_file_whose_name_has_a_colon_is_read(tmp_path):
    path = write(tmp_path / "a:b.py", "get_config = lambda: {'seed': 3}\n")
    assert load_config_file(path) == {"seed": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.depths=3", r"grid\.depths must be a list, got 3; write \[3\]"),
        ("grid.depths=[]", r"grid\.depths must hold at least one value"),
        ("grid.depths=[1,0]", r"grid\.depths\[1\] must be at least 1, got 0"),
        ("grid.seeds=[0,4294967296]", r"grid\.seeds\[1\] must be in \[0, 2\^32\)"),
        ("grid.learning_rates=[1e999]", r"learning_rates\[0\] must be finite, got inf"),
        ("base.seed=5", r"base\.seed must be left out.*set grid\.seeds instead"),
        ("base.model.depth=5", r"base\.model\.depth must be left out.*grid\.depths"),
        ("base.train.num_steps=5", r"num_steps must be left out.*grid\.num_samples"),
        ("base.optimizer.cooldown_steps=5", r"be left out.*grid\.cooldown_fraction"),
    ],
)
def test_what_a_sweep_would_ignore_or_not_take_is_refused(override, message, tmp_path):
    fields = load_config_file(str(ROOT / "configs" / "sweeps" / "emoji_depth.py"))
    fields["base"]["data"] = {
        "kind": "synthetic",
        "context_shape": [12, 384],
        "pooled_dim": 384,
    }
    commands.sweep(fields, workdir=tmp_path, dry_run=True)  # control
    apply_overrides(fields, [f"--config.{override}"])
    with pytest.raises(ValueError, match=message):
        commands.sweep(fields, workdir=tmp_path, dry_run=True)


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"model must be set, and is missing"):
        from_config_dict({"train": {"num_steps": 1}})


def test_whole_numbers_may_stand_for_real_ones():
    assert load("debug", "--config.optimizer.learning_rate=1").optimizer == (
        load("debug", "--config.optimizer.learning_rate=1.0").optimizer
    )


def test_fields_that_may_change_when_a_run_resumes_are_known():
    """A new one is a decision: it must not decide what is learnt."""
    assert schema.changeable_fields(load("emoji")) == (
        "model.remat",
        "model.attention",
        "model.unroll",
        "data.read_threads",
        "data.prefetch_batches",
        "data.encoders",
        "data.path",
        "mesh.",
        "train.log_every_steps",
        "train.max_loss_ratio",
        "checkpoint.",
        "validation.",
        "evaluators",
        "sample.",
        "metric_writers",
    )


def test_what_no_device_can_hold_is_refused_before_it_is_compiled():
    """XLA aborted at depth 100,000, and a huge batch filled the memory."""
    check_memory(load("debug"), mesh=make_mesh_for(load("debug")))  # control
    for override, message in (
        (
            "model.depth=300",
            r"depth must leave room .*got 300: \d+\.\d TB on each",
        ),
        ("train.global_batch_size=2147483640", r"must leave room for a batch.*got 214"),
    ):
        config = load("debug", f"--config.{override}")
        with pytest.raises(ValueError, match=message):
            check_memory(config, mesh=make_mesh_for(config))
    with pytest.raises(ValueError, match=r"depth must be at most 1024, got 1000"):
        load("debug", "--config.model.depth=100000")
