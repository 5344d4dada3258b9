# SPDX-License-Identifier: Apache-2.0
"""The pages name what exists: modules, commands, flags, fields, files; examples run."""

import contextlib
import doctest
import functools
import importlib.util
import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from rfjax import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "rfjax").glob("**/*.py")
}


def _with_examples():
    """Modules with `>>>` in them."""
    paths = (ROOT / "rfjax").glob("**/*.py")
    with_examples = (path for path in paths if ">>> " in path.read_text("utf-8"))
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_examples
    )


def _command_lines():
    """(page, line) of every `rfjax ...` in a block of code."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").split("\n"):
                line = re.sub(r"^(\w+=\S+ )+", "", line)  # environment variables
                if line.startswith("rfjax "):
                    found.append((page.name, line))
    return found


@functools.cache
def _help(command):
    """What `rfjax COMMAND --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert main.run([*command.split(), "--help"]) in (0, None)
    return out.getvalue()


@functools.cache
def _run_fields():
    """Dotted names of the fields of shipped run configs."""

    def names(tree, prefix=""):
        for name, value in tree.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")

    golden = (ROOT / "tests" / "golden").glob("*.json")
    return {name for path in golden for name in names(json.loads(path.read_text()))}


@pytest.mark.parametrize("module", _with_examples())
def test_examples_of_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_module_is_in_the_reference(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "reference_pages", ROOT / "docs/reference_pages.py"
    )
    reference_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference_pages)
    reference_pages.write_pages(tmp_path)
    pages = "".join(path.read_text() for path in (tmp_path / "reference").iterdir())
    described = re.findall(r"automodule:: (\S+)", pages)
    assert sorted(described) == sorted(MODULES - {"rfjax"})


@pytest.mark.parametrize(("page", "line"), _command_lines())
def test_commands_of_the_pages_exist(page, line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow table may cut a flag in two
    line = re.sub(r"\[(-.*?)( \.\.\.)?\]", r"\1", line)  # [--flag ...]
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    flags = [word for word in words if word.startswith("--")]
    if words == flags:
        return  # of rfjax itself
    command = words[0]
    if len(words) > 1 and words[0] == "bench":
        command = " ".join(words[:2])
    text = _help(command)
    for flag in flags:
        name, _, value = flag.partition("=")
        if name.startswith("--config."):
            section = name.removeprefix("--config.").split(".")[0]
            if command in ("train", "plan", "layout") and section != "FIELD":
                assert name.removeprefix("--config.") in _run_fields(), page
            continue
        assert re.search(rf"{name}\b", text), f"{page}: {command} has no {name}"
        if name == "--config" and value.startswith("configs/") and "NAME" not in value:
            assert (ROOT / value.partition(":")[0]).is_file(), page


def test_the_pages_have_commands():
    pages = {page for page, _ in _command_lines()}
    assert {"README.md", "train.md", "sweep.md", "fit.md", "export.md"} <= pages


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [
        link for link in links if "://" not in link and not os.path.exists(ROOT / link)
    ]
    assert missing == []
