# SPDX-License-Identifier: Apache-2.0
"""Where results go is checked before the work, by every command that writes any."""

import socket
from pathlib import Path

import pytest

from rfjax import main
from rfjax.commands import COMMANDS, command_line

ROOT = Path(__file__).parents[1]
RUN = f"--config={ROOT}/configs/debug.py"
EMOJI = f"--config={ROOT}/configs/data/emoji.py"

# The rest of a command line whose flag is an output. What is read does not exist, or is
# not read that early: what is said must be about the output.
FILES = [
    ("bench checkpoint", "--json", [RUN]),
    ("bench data", "--json", ["--data=none"]),
    ("bench step", "--json", [RUN]),
    ("evaluate", "--json", ["--workdir=none"]),
    ("evaluate", "--picture", ["--workdir=none"]),
    ("fit", "--json", ["--table=none", "--out=new"]),
    ("layout", "--json", [RUN]),
    ("layout", "--picture", [RUN]),
    ("plan", "--json", [RUN, "--topology=v5e:4x4"]),
    ("plan", "--picture", [RUN, "--topology=v5e:4x4"]),
    ("plan", "--summary", [RUN, "--topology=v5e:4x4"]),
    ("sample", "--out", ["--workdir=none", "--prompt=a"]),
    ("sample", "--out", ["--workdir=none", "--sheet"]),
    ("verify", "--picture", ["--data=none"]),
]
FOLDERS = [
    ("coordinates", "--out", [RUN]),
    ("encode", "--out", [EMOJI]),
    ("export", "--out", ["--workdir=none"]),
    ("fit", "--out", ["--table=none"]),
    ("import", "--workdir", ["--from=none", RUN]),
]


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Calls a command, which must end in one line about the output, and do nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "thesis.tex").write_text("kept")
    (tmp_path / "held" / "coordinates.json").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    before = sorted(tmp_path.rglob("*"))

    def call(command, flag, rest, path, message):
        assert main.run([*command.split(), *rest, f"{flag}={path}"]) == 1
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        assert message in error
        assert sorted(tmp_path.rglob("*")) == before

    return call


@pytest.mark.parametrize(("command", "flag", "rest"), FILES)
def test_a_file_that_cannot_be_written(refuse, command, flag, rest):
    for path, message in (
        ("file/a.png", f"{flag} must be in a folder, got file/a.png"),
        ("folder.png", f"{flag} must be a file, got 'folder.png'"),
        ("/proc/a.png", f"{flag} must be where files can be made, got /proc/a.png"),
        (f"new/{'a' * 250}.png", f"{flag} must have names of at most 220 bytes"),
        ("socket.png", f"{flag} must be a file, got socket.png, a socket"),
        ("/dev/fd/99", f"{flag} must be an open file, got /dev/fd/99"),
        *([("loop", "a link to itself")] if flag in ("--json", "--summary") else []),
        *([("a.gif", f"{flag} must end with .png")] if flag in ("--picture",) else []),
    ):
        refuse(command, flag, rest, path, message)


@pytest.mark.parametrize(("command", "flag", "rest"), FOLDERS)
def test_a_folder_that_cannot_be_filled(refuse, command, flag, rest):
    for path, message in (
        ("file", "file"),
        ("file/below", "must be in a folder, got file/below"),
        ("held", "held"),
        ("loop/below", "must be in a folder, got loop/below"),
        ("/dev/null", "must be"),
        ("/proc/new", "must be where files can be made, got /proc/new"),
        (f"new/{'a' * 250}", "must have names of at most 220 bytes"),
    ):
        refuse(command, flag, rest, path, message)


def test_every_output_is_in_the_lists():
    listed = {(command, flag) for command, flag, _ in [*FILES, *FOLDERS]}
    for command in COMMANDS:
        app = command_line.make_app()
        for word in command.split():
            app = app[word]
        flags = {
            name
            for argument in app.assemble_argument_collection(parse_docstring=True)
            for name in argument.names
        }
        for flag in flags & {"--out", "--json", "--picture", "--summary"}:
            assert (command, flag) in listed
