# SPDX-License-Identifier: Apache-2.0
"""Writes the reference: a page per part, with every module of the package on one.

Modules stand in the order in which the docstring of their package names them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# A module in backticks, or the modules in the first column of a line.
_MENTION = re.compile(r"`(\w+)`|^([\w, ]+?) {3,}", re.MULTILINE)

# Page -> title, and the modules and packages on it, in the order of the data flow.
PAGES = {
    "config": (
        "Configuration",
        (
            "config",
            "config_files",
            "config_fields",
            "schema",
            "input_paths",
            "value_types",
            "types",
            "errors",
        ),
    ),
    "data": ("Data", ("data", "encoders")),
    "flow": ("Flow", ("flow",)),
    "models": ("Models", ("models",)),
    "parallel": ("Mesh and processes", ("parallel",)),
    "train": ("Training", ("train",)),
    "checkpoint": (
        "Checkpoints and files",
        (
            "checkpoint",
            "run_folder",
            "checksums",
            "whole_files",
            "disk",
            "folder_lock",
            "partial_files",
            "stopping",
        ),
    ),
    "evaluation": ("Evaluation", ("evaluation", "timestep_levels")),
    "scaling": ("Scaling study", ("scaling",)),
    "plan": ("Plans", ("plan",)),
    "bench": ("Benchmarks", ("bench",)),
    "export": ("Export and import", ("export",)),
    "commands": ("Commands", ("commands", "main", "cpu", "packages")),
}


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir)))
    return {"parallel_read_safe": True}


def write_pages(docs: Path) -> None:
    """Writes docs/reference/PAGE.md; what has not changed keeps its date.

    Raises:
      ValueError: a module of the package is on no page.
    """
    package = ROOT / "rfjax"
    placed = {name for _, names in PAGES.values() for name in names}
    missing = {path.stem for path in _children(package)} - placed
    if missing:
        raise ValueError(
            f"docs/reference_pages.py must place {', '.join(sorted(missing))} on a "
            "page; add each to PAGES."
        )
    folder = docs / "reference"
    folder.mkdir(exist_ok=True)
    for page, (title, names) in PAGES.items():
        modules = [module for name in names for module in _modules(package / name)]
        text = "\n".join([f"# {title}", *map(_section, modules)])
        path = folder / f"{page}.md"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def _modules(path: Path) -> Iterator[Path]:
    """A module, or a package and all that is in it."""
    if not path.is_dir():
        yield path.with_suffix(".py")
        return
    yield path
    source = (path / "__init__.py").read_text("utf-8")
    mentioned = re.findall(_MENTION, ast.get_docstring(ast.parse(source)) or "")
    order = re.findall(r"\w+", " ".join(map("".join, mentioned)))

    def place(child: Path) -> tuple[int, str]:
        name = child.stem
        return order.index(name) if name in order else len(order), name

    for child in sorted(_children(path), key=place):
        yield from _modules(child)


def _children(package: Path) -> list[Path]:
    return [
        path.with_suffix("")
        for path in package.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__")
        or (path / "__init__.py").is_file()
    ]


def _section(path: Path) -> str:
    """A module on its page; what a package re-exports is described below it."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    members = "no-members" if path.is_dir() else "members"
    return f"""
## {module}

```{{eval-rst}}
.. automodule:: {module}
   :{members}:
```
"""
