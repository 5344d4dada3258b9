# SPDX-License-Identifier: Apache-2.0
"""The console script: its flags are frozen here, and bad input ends it cleanly."""

import re
from pathlib import Path

import pytest

from rfjax import main

ROOT = Path(__file__).parents[1]

# A new flag is a decision: add it here on purpose, or to a config section instead.
FLAGS = {
    "encode": "config out",
    "verify": "data workdir step picture",
    "train": "config workdir branch_from",
    "evaluate": "workdir step num_samples json",
    "sample": "workdir prompt sheet out step weights seed num_steps solver "
    "guidance_scale",
    "plan": "config topology num_images json summary picture search limit",
    "layout": "config devices topology json picture",
    "sweep": "config workdir dry_run launcher cells",
    "coordinates": "config depths steps parameterisation out",
    "fit": "runs table columns out law size loss bootstraps holdout json "
    "mid_run where budget forecast",
    "bench step": "config rounds peer json",
    "bench checkpoint": "config folder rounds json",
    "bench data": "data rounds json",
    "export": "workdir out format weights dtype step pipeline",
    "import": "config from format workdir",
}


def test_flags_are_frozen():
    flags = {
        name: set(command.flags) | ({"config"} if command.config else set())
        for name, command in main.COMMANDS.items()
    }
    assert flags == {name: set(names.split()) for name, names in FLAGS.items()}


@pytest.mark.parametrize("name", FLAGS)
def test_help_names_every_flag(name, capsys):
    assert main.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    flags = FLAGS[name].replace("_", "-").split()
    assert all(f"--{flag}" in text for flag in flags)
    assert main.run([]) == 0
    assert name in capsys.readouterr().out


SD3_OF_7 = f"--config={ROOT}/configs/sd3.py:7"
DEBUG = f"--config={ROOT}/configs/debug.py"


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["trian"], 2, r"no command 'trian'"),
        (["train", DEBUG], 1, r"rfjax train needs --workdir: run folder"),
        (["train", "--workdir=w"], 1, r"rfjax train needs --config"),
        (["train", DEBUG, "w"], 1, r"takes flags only, got 'w'"),
        (["train", DEBUG, "--workdir=w", "--lr=1"], 1, r"Unknown command line flag"),
        (["train", "--config=no.py", "--workdir=w"], 1, r"--config=no\.py does not ex"),
        (["train", DEBUG, "--workdir=w", "--config.model.dept=1"], 1, r"model\.depth"),
        (["train", DEBUG, "--workdir=w", "--config.model.depth=0"], 1, r"at least 1"),
        (["train", DEBUG, "--workdir=w", "--config.mesh.fsdp=5"], 1, r"5 devices"),
        (["evaluate", "--workdir=w", "--step=x"], 1, r"flag --step=x"),
        (["evaluate", "--workdir=w", "--config.seed=1"], 1, r"takes no --config\.seed"),
        (["evaluate", "--workdir=w"], 1, r"--workdir=w holds no config\.json"),
        (["sample", "--workdir=w", "--sheet", "--prompt=fox"], 1, r"either --sheet or"),
        (["sample", "--workdir=w"], 1, r"either --sheet or"),
        (["verify", "--data=w"], 1, r"data folder w does not exist"),
        (["verify", "--data=w", "--step=3"], 1, r"--step goes with --workdir=DIR"),
        (["verify", "--workdir=w", "--picture=p"], 1, r"--picture goes with --data=D"),
        (["verify"], 1, r"give either --data=DIR or --workdir=DIR"),
        (["verify", "--workdir=w"], 1, r"--workdir=w holds no config\.json"),
        (["export", "--workdir=w", "--out=o"], 1, r"workdir w holds no config\.json"),
        (["import", DEBUG, "--workdir=w", "--from=f"], 1, r"f does not exist; give a"),
        (["fit", "--out=o"], 1, r"exactly one of runs .* and table"),
        (["fit", "--out=o", "--runs=w"], 1, r"runs folder w does not exist"),
        (["fit", "--out=o", "--runs=w", "--budget=much"], 1, r"budget must be a numbe"),
        (["fit", "--out=o", "--runs=w", "--forecast=d=3"], 1, r"depth=12,samples=1e6"),
        (
            ["train", SD3_OF_7, "--workdir=w"],
            1,
            r"sd3\.py:7 is refused: .*must be a de",
        ),
        (["sweep", DEBUG, "--workdir=w"], 1, r"sweep config must have the section ba"),
        (["coordinates", DEBUG, "--out=o", "--depths=1;2"], 1, r"in 1,2,4, got '1;2'"),
        (["coordinates", DEBUG, "--out=o", "--depths=2"], 1, r"two different positive"),
        (["coordinates", DEBUG, "--out=o", "--steps=2"], 1, r"steps must be at least"),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(
    args, status, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main.run(args) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("rfjax")
    assert "Traceback" not in captured.err
    assert re.search(message, captured.err), captured.err
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_library_keeps_its_traceback(monkeypatch):
    """Only our own checks are shortened: a bug must not look like bad input."""

    def broken(values):
        int("seven")

    monkeypatch.setitem(main.COMMANDS, "verify", main.Command(broken, "", {}))
    with pytest.raises(ValueError, match="invalid literal"):
        main.run(["verify"])


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run"])
def test_flags_may_be_written_with_hyphens(spelling):
    config = f"--config={ROOT}/configs/sweeps/emoji_depth.py"
    values = main.parse_flags("sweep", [config, "--workdir=a-b", spelling])
    assert values["dry_run"] is True
    assert values["workdir"] == "a-b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("False", False),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("rf/lognorm(0.00,1.00)", "rf/lognorm(0.00,1.00)"),
        ("data/emoji", "data/emoji"),
    ],
)
def test_values_of_overrides(text, value):
    assert main.parse_value(text) == value
    assert type(main.parse_value(text)) is type(value)
