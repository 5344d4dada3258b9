# SPDX-License-Identifier: Apache-2.0
"""The console script: its flags are frozen here, and bad input ends it cleanly."""

import errno
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rfjax import commands, main
from rfjax.commands import command_line

ROOT = Path(__file__).parents[1]

# A new flag is a decision: add it here on purpose, or to a config section instead.
FLAGS = {
    "encode": "config out workers shard estimate price-per-hour",
    "verify": "data workdir step picture encoders",
    "config": "config",
    "train": "config workdir branch-from",
    "evaluate": "workdir step num-samples data json picture",
    "sample": "workdir prompt sheet out step weights seed num-steps solver grid "
    "guidance-scale aspect data encoders",
    "plan": "config topology num-images json summary picture search limit",
    "layout": "config devices topology json picture",
    "sweep": "config workdir dry-run launcher cells",
    "coordinates": "config depths steps parameterisation out",
    "fit": "runs table columns out law size loss bootstraps holdout json "
    "mid-run where budget forecast",
    "bench step": "config rounds peer json",
    "bench checkpoint": "config folder rounds json",
    "bench data": "data layout peers examples rounds json",
    "export": "workdir out format weights dtype step pipeline data license",
    "import": "config from format workdir",
    "completion": "shell",
}
# The file whose function `rfjax verify` calls.
VERIFY = importlib.import_module("rfjax.commands.verify")


def app_of(name):
    app = command_line.make_app()
    for word in name.split():
        app = app[word]
    return app


def arguments_of(name):
    collection = app_of(name).assemble_argument_collection(parse_docstring=True)
    return [argument for argument in collection if argument.parse]


def test_flags_are_frozen():
    assert set(commands.COMMANDS) == set(FLAGS)
    for name, flags in FLAGS.items():
        found = {argument.name for argument in arguments_of(name)}
        assert found == {f"--{flag}" for flag in flags.split()}, name


@pytest.mark.parametrize("name", FLAGS)
def test_help_names_every_flag_and_ends_with_an_example(name, capsys):
    assert main.run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"--{flag}\b", text) for flag in FLAGS[name].split())
    assert "│" not in text, "no panels"
    example = text.partition("\nExample:\n")[2].splitlines()
    assert example, "the docstring has no Example: section"
    for line in example:
        assert line.startswith(f"  rfjax {name} ")
        used = re.findall(r" (--[a-z-]+)\b", line.replace("--config.", ""))
        assert {f.replace("--no-", "--") for f in used} <= {
            f"--{flag}" for flag in FLAGS[name].split()
        }


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_says_what_it_is(name):
    assert all(argument.parameter.help for argument in arguments_of(name))


def test_help_lists_the_commands(capsys):
    for args in ([], ["--help"], ["-h"], ["help"]):
        assert main.run(args) == 0
        text = capsys.readouterr().out
        for name in FLAGS:
            assert re.search(rf"^  {name.split()[0]}  ", text, re.M)
    for args, status in ((["bench"], 2), (["bench", "--help"], 0)):
        assert main.run(args) == status
        text = capsys.readouterr().out
        assert re.findall(r"^  (\w+) ", text, re.M) == ["step", "checkpoint", "data"]


def test_help_of_a_command_by_word(capsys):
    assert main.run(["help", "train"]) == 0
    assert "--branch-from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.py",
            "def get_config(arg):\n    return (\n",
            r"SyntaxError.*line 2\)",
        ),
        (
            "a.py",
            "def get_config(arg):\n    return 1 / 0\n",
            r"ZeroDivision.*\(line 2\)",
        ),
        ("a.py", "get_config = lambda: None\n", r"return a ConfigDict or a.*got None"),
        (
            "a.py",
            "get_config = lambda: dict\n",
            r"a ConfigDict or .*class 'dict",
        ),
        ("a.py", "class get_config: pass\n", r"must define a function get_config"),
        ("a.py", "get_config = 3\n", r"must define a function get_config"),
        ("a.py", "get_config = lambda: {1: 2}\n", r"fields must be texts, got 1"),
        ("a.py", "import sys\nsys.exit(3)\n", r"SystemExit: 3 \(line 2\); correct"),
        (
            "a.py",
            "get_config = lambda a, b: {}\n",
            r"TypeError.*argument: 'b'",
        ),
        (
            "a.py",
            "def get_config():\n  raise OSError('a\\nb')\n",
            r"OSError: a b \(line 2",
        ),
        ("a.py", "get = 1\n", r"must define a function get_config"),
        ("a.txt", "", r"must be a Python file"),
        ("a.json", "[1]", r"must hold a JSON object, got '\[1\]'"),
        ("a.json", '{"seed": ', r"must be JSON, got '\{.seed.: '"),
    ],
)
def test_errors_of_a_config_file_are_one_line(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    config = f"--config={tmp_path / name}"
    assert main.run(["train", config, f"--workdir={tmp_path / 'w'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("command", "file", "text"),
    [
        ("evaluate", "config.json", '{"seed": 0'),
        ("verify", "config.json", "[1]"),
        ("train", "run.json", '{"depth": 1'),
    ],
)
def test_cut_files_of_a_run_are_one_line(command, file, text, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text(text)
    flags = [DEBUG] if command == "train" else []
    assert main.run([command, *flags, f"--workdir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{file} must " in error


def test_help_does_not_import_jax():
    script = (
        "import sys\n"
        "from rfjax import main\n"
        "for args in ([], ['--help'], ['bench'], ['--version'], ['trian']):\n"
        "    main.run(args)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_commands_are_functions_whatever_was_imported_first():
    script = (
        "from rfjax import commands\n"
        "import rfjax.commands.verify\n"
        "assert callable(commands.verify) and callable(commands.export)\n"
        "from rfjax.commands import fit, job\n"
        "assert callable(fit) and not callable(job)\n"
        "assert set(commands.__all__) <= {*dir(commands), *commands.__all__}\n"
        "assert not hasattr(commands, 'trian')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


SD3_OF_7 = f"--config={ROOT}/configs/sd3.py:7"
SWEEP = f"--config={ROOT}/configs/sweeps/emoji_depth.py"
DEBUG = f"--config={ROOT}/configs/debug.py"
SWEEP = f"--config={ROOT}/configs/sweeps/emoji_depth.py"
DATA_SET = f"--config={ROOT}/configs/data/emoji.py"


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["trian"], 2, r"no command 'trian'; did you mean train\?"),
        (["zzz"], 2, r"no command 'zzz'; rfjax --help lists them"),
        (["bench", "stpe"], 2, r"no command 'bench stpe'; did you mean bench step\?"),
        (["train", DEBUG], 1, r"needs --workdir: run folder"),
        (["train", "--workdir=w"], 1, r"needs --config: config file"),
        (["train", DEBUG, "--workdir=w", "v"], 1, r"takes flags only, got 'v'"),
        (["verify", "w"], 1, r"takes flags only, got 'w'"),
        (["train", DEBUG, "--workdir=w", "--lr=1"], 1, r"no flag --lr; see rfjax trai"),
        (["train", DEBUG, "--workdr=w"], 1, r"no flag --workdr; did you mean --workdi"),
        (["bench", "data", "--round=3"], 1, r"did you mean --rounds\?"),
        (["train", "--config", "--workdir=w"], 1, r"--config needs a value; see rfjax"),
        (["train", "--config=no.py", "--workdir=w"], 1, r"--config=no\.py does not ex"),
        (["train", DEBUG, "--workdir=w", "--config.model.dept=1"], 1, r"model\.depth"),
        (["train", DEBUG, "--workdir=w", "--config.model.depth=0"], 1, r"at least 1"),
        (["train", DEBUG, "--workdir=w", "--config.mesh.fsdp=5"], 1, r"5 devices"),
        (["train", DEBUG, "--workdir=w", "--config.seed", "3"], 1, r"takes flags only"),
        (["train", DEBUG, "--workdir=w", "--config.seed"], 1, r"must have the form"),
        (
            ["train", SWEEP, "--workdir=w"],
            1,
            r"is that of a sweep; `rfjax sweep`",
        ),
        (
            ["plan", DATA_SET, "--topology=v5e:2x2"],
            1,
            r"that of a data set; `rfjax",
        ),
        (
            ["sweep", DEBUG, "--workdir=w"],
            1,
            r"of a sweep, and is that of a run",
        ),
        (
            ["encode", DEBUG, "--out=o"],
            1,
            r"of a data set, and is that of a",
        ),
        (["import", SWEEP, "--workdir=w", "--from=f"], 1, r"is that of a sweep"),
        (["config", "no.py"], 1, r"no\.py does not exist"),
        (["config", DEBUG, "--config.model.dept=1"], 1, r"did you mean model\.depth"),
        (["evaluate", "--workdir=w", "--step=x"], 1, r"--step must be a whole number"),
        (["evaluate", "--workdir=w", "--config.seed=1"], 1, r"takes no --config\.seed"),
        (["evaluate", "--workdir=w"], 1, r"--workdir=w holds no config\.json"),
        (["sample", "--workdir=w", "--sheet=3"], 1, r"--sheet: unable to convert"),
        (["sample", "--workdir=w", "--sheet", "--prompt=fox"], 1, r"either --sheet or"),
        (["sample", "--workdir=w"], 1, r"either --sheet or"),
        (["verify", "--data=w"], 1, r"data folder w does not exist"),
        (["verify", "--data=w", "--step=3"], 1, r"--step goes with --workdir=DIR"),
        (
            ["verify", "--workdir=w", "--encoders=w"],
            1,
            r"--encoders goes with --data=D",
        ),
        (
            ["verify", "--data=w", "--encoders=x"],
            1,
            r"--encoders must be a folder, got ",
        ),
        (["verify", "--workdir=w", "--picture=p"], 1, r"--picture goes with --data=D"),
        (["verify"], 1, r"give either --data=DIR or --workdir=DIR"),
        (["verify", "--workdir=w"], 1, r"--workdir=w holds no config\.json"),
        (["export", "--workdir=w", "--out=o"], 1, r"workdir w holds no config\.json"),
        (["export", "--workdir=w", "--out=o", "--license= "], 1, r"--license must not"),
        (["import", DEBUG, "--workdir=w", "--from=f"], 1, r"f does not exist; give a"),
        (["fit", "--out=o"], 1, r"exactly one of runs .* and table"),
        (["fit", "--out=o", "--runs=w"], 1, r"runs folder w does not exist"),
        (["fit", "--out=o", "--runs=w", "--budget=much"], 1, r"budget must be a numbe"),
        (["fit", "--out=o", "--runs=w", "--forecast=d=3"], 1, r"depth=12,samples=1e6"),
        (
            ["fit", "--out=o", "--table=t", "--columns=N"],
            1,
            r"as in params=N,samples=",
        ),
        (
            ["train", SD3_OF_7, "--workdir=w"],
            1,
            r"sd3\.py:7 is refused: .*must be a de",
        ),
        (["coordinates", DEBUG, "--out=o", "--depths=1;2"], 1, r"in 1,2,4, got '1;2'"),
        (["coordinates", DEBUG, "--out=o", "--depths=2"], 1, r"two different positive"),
        (
            ["coordinates", DEBUG, "--out=o", "--depths=1,999"],
            1,
            r"model.depth must leav",
        ),
        (["coordinates", DEBUG, "--out=o", "--steps=2"], 1, r"steps must be at least"),
        (["--workdir=w", "evaluate"], 2, r"the command comes first, got '--workdir=w'"),
        (
            ["layout", DEBUG, "--devices=2.5"],
            1,
            r"--devices must be a whole number, go",
        ),
        (["fit", "--out=o", "--runs=w", "--bootstraps=2.6"], 1, r"be a whole number"),
        (
            ["fit", "--out=o", "--runs=w", "--json=."],
            1,
            r"--json must be a file, got '",
        ),
        (
            ["layout", DEBUG, "--devices=1", "--picture=p.xyz"],
            1,
            r"\.svg or \.pdf, got",
        ),
        (["sample", "--workdir=w", "--sheet", "--out=s"], 1, r"--out must end with"),
        (
            ["sample", "--workdir=w", "--sheet", "--seed=-1"],
            1,
            r"in \[0, 2\^32\), got -1",
        ),
        (["bench", "data", "--rounds=0"], 1, r"--rounds must be at least 1, got 0"),
        (["config", DEBUG, "--config.data.kind=nope"], 1, r"data\.kind must be one of"),
        (["config", DEBUG, "--config.mesh=3"], 1, r"mesh must be a section of fields"),
        (["sweep", SWEEP, "--workdir=w", "--config.grid=3"], 1, r"grid must be a sect"),
        (["sweep", SWEEP, "--workdir=w", "--config.base=3"], 1, r"base must be a sect"),
        (
            ["sweep", SWEEP, "--workdir=w", "--config.base.train.global_batch_size=0"],
            1,
            r"base\.train\.global_batch_size must be a positive number",
        ),
        (
            ["sweep", SWEEP, "--workdir=w", "--config.forecast=3"],
            1,
            r"forecast must be",
        ),
        (["completion", "csh"], 1, r"--shell must be one of bash, zsh, fish, got 'csh"),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(
    args, status, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main.run(args) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("rfjax")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert re.search(message, captured.err), captured.err
    assert not list(tmp_path.iterdir())


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    """Only our own checks are shortened: a bug must not look like bad input."""
    for expression, name in (
        ("int('seven')", "ValueError"),
        ("{}['key']", "KeyError"),
        ("list(zip([1], [], strict=True))", "ValueError"),
        ("__import__('a_missing_module')", "ModuleNotFoundError"),
        ("open('a missing file')", "FileNotFoundError"),
    ):
        monkeypatch.setattr(VERIFY, "verify", lambda code=expression: eval(code))
        assert main.run(["verify"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback")
        assert name in lines[-2]
        assert re.match(r"rfjax verify: this is a bug in rfjax .*: rfjax v", lines[-1])


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, r"Permission denied: runs/a"),
        (
            errno.ENOSPC,
            r"runs must have room for a, got .*B \(No space left on device\)",
        ),
        (
            errno.EDQUOT,
            r"runs must have room for a, got Disk quota exceeded; make room",
        ),
        (
            errno.EFBIG,
            r"runs must have room for a, got File too large; raise the limit",
        ),
        (errno.EROFS, r"runs must be writable for a, got Read-only file system; make"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_path(
    number, message, monkeypatch, capsys
):
    def refused():
        raise OSError(number, os.strerror(number), "runs/a")

    monkeypatch.setattr(VERIFY, "verify", refused)
    assert main.run(["verify"]) == 1
    assert re.fullmatch(f"rfjax verify: {message}.*\n", capsys.readouterr().err)


def test_a_file_where_a_folder_must_be(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    args = ["encode", DATA_SET, f"--out={out}", "--config.source.max_emoji=4"]
    assert main.run(args) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"rfjax encode: out must be in a folder, got {out}")


def call_of(*args):
    """What a command line calls its function with."""
    return command_line.parse(args, report=print).keywords


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run", "--dry-run=true"])
def test_flags_may_be_written_with_hyphens(spelling):
    values = call_of("sweep", SWEEP, "--workdir=a-b", spelling)
    assert values["dry_run"] is True
    assert values["workdir"] == Path("a-b")
    assert call_of("sweep", SWEEP, "--workdir", "w")["report"] is print


@pytest.mark.parametrize("spelling", ["--nosheet", "--no-sheet", "--sheet=false"])
def test_a_switch_may_be_turned_off(spelling, capsys):
    flags = ["--workdir=w", spelling]
    assert main.run(["sample", *flags]) == 1
    assert "give either --sheet or" in capsys.readouterr().err


def test_flags_of_every_type():
    fit = ("fit", "--out=o", "--runs=r")
    for no in ("--no-holdout", "--noholdout", "--holdout=false", "--no_holdout"):
        assert call_of(*fit, no)["holdout"] is False
    assert call_of(*fit, "--holdout")["holdout"] is True
    assert call_of(*fit, "--budget=1e20", "--budget", "3")["budgets"] == [1e20, 3.0]
    assert call_of(*fit, "--columns=params=N,loss=L")["columns"] == {
        "params": "N",
        "loss": "L",
    }
    assert call_of(*fit, "--forecast=depth=12,samples=1e6")["forecasts"] == [
        {"depth": 12.0, "samples": 1e6}
    ]
    prompts = call_of("sample", "--workdir=w", "--prompt=a fox", "--prompt", "cat")
    assert prompts["prompts"] == ["a fox", "cat"]
    assert call_of("coordinates", DEBUG, "--out=o", "--depths=1,8")["depths"] == [1, 8]
    # The last one counts, so that a script's flags can be overridden.
    assert call_of(*fit, "--law=size", "--law=samples")["law"] == "samples"


def test_plan_and_layout_leave_accelerators_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    commands.COMMANDS["layout"].prepare(["layout", DEBUG])
    assert main.os.environ["JAX_PLATFORMS"] == "tpu"
    commands.COMMANDS["layout"].prepare(["layout", DEBUG, "--devices=4"])
    assert main.os.environ["JAX_PLATFORMS"] == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    commands.COMMANDS["plan"].prepare(["plan", DEBUG])
    assert main.os.environ["JAX_PLATFORMS"] == "cpu"
    assert main.os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_flags(shell, capsys):
    assert main.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "branch-from" in script
    assert "checkpoint" in script


SHIPPED = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")
)


@pytest.mark.parametrize("path", SHIPPED)
def test_every_field_of_a_shipped_config_is_explained(path, capsys):
    argument = ":24" if "sd3" in path else ""
    assert main.run(["config", f"{ROOT}/{path}{argument}"]) == 0
    text = capsys.readouterr().out
    kind = path.split("/")[1]
    expected = {"data": "rfjax encode", "sweeps": "rfjax sweep"}.get(
        kind, "rfjax train"
    )
    assert expected in text.splitlines()[0]
    # The line under a value says what the field is, and not only of which type.
    unexplained = re.findall(
        r"^(\S+) = .*\n    \((?:int|str|float|bool|list of)", text, re.M
    )
    assert not unexplained
    sections = re.findall(r"^(\S+): +(?:\(|$)", text, re.M)
    assert not sections


def test_config_shows_values_defaults_and_kinds(capsys):
    assert main.run(["config", DEBUG, "--config.model.depth=7"]) == 0
    text = capsys.readouterr().out
    assert "model.depth = 7\n" in text
    assert re.search(r"kind synthetic, one of .*shards", text)
    assert "data.num_classes = " in text
    rules = " ".join(text.split())
    assert "(int, at least 1, must be set)" in rules
    assert "(float, in [0, 1), default 0.99)" in rules
    assert "(float, positive, default 1.0)" in rules
    assert "(list of 3 int, at least 1, default [8, 8, 16])" in rules
    assert "(str, one of euler, heun," in rules
