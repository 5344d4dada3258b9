# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, read back: whole, damaged, and of another version."""

import json

import pytest

from rfjax import run_folder
from rfjax.config import config_to_dict, from_config_dict, load_config
from rfjax.export import card
from rfjax.scaling.study import runs

RUN = {
    "depth": 1,
    "params": 100,
    "train_flops_per_sample": 600,
    "image_tokens": 16,
    "context_tokens": 4,
    "data": "emoji",
    "data_hash": "d1",
    "status": "finished",
    "step": 6,
    "saved_step": None,
    "learning_rate": 1e-3,
}
LINE = {"step": 6, "samples": 48, "val_ema/loss": 1.5}
CONFIG = config_to_dict(
    from_config_dict(
        {
            "model": {"depth": 1},
            "data": {"kind": "synthetic"},
            "train": {"num_steps": 6},
            "optimizer": {"warmup_steps": 0, "cooldown_steps": 0},
            "ema": {"every_steps": 1},
        }
    )
)

# What is no JSON object -> what is said of it.
JUNK = {
    b"": r"must be JSON, got nothing",
    b"garbage": r"must be JSON, got 'garbage'",
    b'{"seed": 1, "mod': r"must be JSON, got '{\"seed\": 1, \"mod'",
    b"[1, 2]": r"must hold a JSON object, got '\[1, 2\]'",
    b"null": r"must hold a JSON object, got 'null'",
    b"\xff\xfe\x00{": r"must be JSON, got",
    b"[" * 100_000: r"must be JSON, got '\[{40}'\.\.\. \(.*recursion",
}


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_whole_files_are_read(workdir):
    assert run_folder.read_run(workdir) == RUN
    assert run_folder.read_metrics(workdir) == [LINE]
    assert load_config(workdir).model.depth == 1
    assert card.read_run(workdir).record == RUN
    assert runs.load_runs(workdir)["val_ema/loss"].tolist() == [1.5]


@pytest.mark.parametrize("content", JUNK)
@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("run.json", [run_folder.read_run, runs.load_runs, card.read_run]),
        ("config.json", [load_config, card.read_run]),
    ],
)
def test_junk_is_named_by_every_reader(workdir, name, readers, content):
    (workdir / name).write_bytes(content)
    for reader in readers:
        with pytest.raises(ValueError, match=rf"{name} {JUNK[content]}"):
            reader(workdir)


@pytest.mark.parametrize("content", [junk for junk in JUNK if junk])
def test_junk_among_the_metrics_is_named_by_its_line(workdir, content):
    path = workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + content + b"\n")
    for reader in (run_folder.read_metrics, runs.load_runs, card.read_run):
        with pytest.raises(
            ValueError, match=rf"metrics.jsonl line 2 {JUNK[content]}.*delete that line"
        ):
            reader(workdir)
    # Control: without its end it is the beginning of a line that a kill cut off.
    path.write_bytes(path.read_bytes()[:-1])
    assert run_folder.read_metrics(workdir) == [LINE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "6"}, r"field step of .*run\.json must be a whole number, got '6'"),
        ({"step": 6.5}, r"field step of .* must be a whole number, got 6\.5"),
        ({"saved_step": []}, r"saved_step of .* must be a whole number or null, got"),
        ({"status": 3}, r"field status of .* must be text, got 3"),
        ({"learning_rate": "x"}, r"learning_rate of .* must be a number, got 'x'"),
    ],
)
def test_fields_of_another_type_are_named(workdir, change, message):
    (workdir / "run.json").write_text(json.dumps(RUN | change))
    with pytest.raises(ValueError, match=message):
        run_folder.read_run(workdir)


@pytest.mark.parametrize("field", ["image_tokens", "train_flops_per_sample", "depth"])
def test_fields_that_a_reader_needs_are_named(workdir, field):
    record = {name: value for name, value in RUN.items() if name != field}
    (workdir / "run.json").write_text(json.dumps(record))
    assert run_folder.read_run(workdir) == record
    with pytest.raises(ValueError, match=rf"run\.json must have the field {field}"):
        runs.load_runs(workdir)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"loss": 1.0}, r"line 1 must have a whole number as its step, got None"),
        ({"step": 1.5}, r"must have a whole number as its step, got 1\.5"),
        ({"step": True}, r"must have a whole number as its step, got True"),
        ({"step": 1, "val/loss": "low"}, r"a number as its val/loss, got 'low'"),
        ({"step": 1, "samples": [8]}, r"a whole number as its samples, got \[8\]"),
    ],
)
def test_metrics_of_another_type_are_named(workdir, line, message):
    (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        run_folder.read_metrics(workdir)


def test_a_loss_without_its_samples_has_no_place_in_a_table(workdir):
    (workdir / "metrics.jsonl").write_text('{"step": 6, "val_ema/loss": 1.5}\n')
    with pytest.raises(ValueError, match=r"must have samples in the line of step 6"):
        runs.load_runs(workdir)


def test_the_config_of_another_version_is_named(workdir):
    (workdir / "config.json").write_text(json.dumps(CONFIG | {"tachyons": 3}))
    with pytest.raises(
        ValueError, match=r"config\.json must be .* of rfjax .*: tachyons is not a .*"
    ):
        load_config(workdir)
