# SPDX-License-Identifier: Apache-2.0
"""Docstrings are plain text for people at an editor; this turns them into reST.

What they have and reST has not:

- an indented block outside of a section is code, without a `::` before it
- lines in columns, such as a table of modules, stay lines
- `x` in backticks is code, and `*`, `|`, `_` and backslashes mean nothing
- `Returns: text` may begin on the line of its name
"""

from __future__ import annotations

import contextlib
import re
import typing
from typing import Any

_SECTION = re.compile(r"[A-Z]\w+:")
_ONE_LINE_SECTION = re.compile(r"(Args|Returns|Raises|Yields): (\S.*)")
_EXCEPTION = re.compile(r"^(  [A-Z]\w+),?(?= )")
_COLUMNS = re.compile(r"\S {3,}\S")
_MARKUP = re.compile(r"``.+?``|`[^`]+`|[*|\\]|(?<=\w)_(?!\w)")


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx; before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _to_rest, priority=100)
    app.connect("autodoc-before-process-signature", _drop_annotated)
    return {"parallel_read_safe": True}


def _to_rest(app, what, name, obj, options, lines: list[str]) -> None:
    del app, name, obj, options
    lines[:] = to_rest("\n".join(lines)).split("\n")
    if what in ("property", "attribute"):
        # An empty comment, or napoleon takes what is before a colon for the type.
        lines[:0] = ["..", ""]


def _drop_annotated(app, function, bound_method) -> None:
    """Types without what `Annotated` adds to them for the command line."""
    del app, bound_method
    with contextlib.suppress(NameError, TypeError):  # names for type checkers only
        plain = typing.get_type_hints(function)
        if plain != typing.get_type_hints(function, include_extras=True):
            function.__annotations__ = plain


def to_rest(text: str) -> str:
    """A docstring, its common indent removed, as napoleon and docutils read it."""
    blocks = []
    in_section = False
    for block in re.split(r"\n{2,}", text):
        left = [line for line in block.split("\n") if line[:1].strip()]
        if left:
            in_section = bool(_SECTION.match(left[-1]))
        blocks.append(_block(block, is_code=not left and not in_section))
    return "\n\n".join(blocks)


def _block(block: str, *, is_code: bool) -> str:
    lines = block.split("\n")
    if is_code:
        return "::\n\n" + block
    if ">>> " in block:
        return block
    if lines[0] == "Example:":  # of a command line
        return "\n".join(["Example:", "  ::", "", *("  " + line for line in lines[1:])])
    if len(lines) > 1 and any(_COLUMNS.search(line) for line in lines):
        return "::\n\n" + "\n".join("    " + line for line in lines)
    return "\n".join(_escape(line) for line in _sections(lines))


def _sections(lines: list[str]) -> list[str]:
    """Puts what follows `Returns: ` on lines of its own; a colon after exceptions."""
    found: list[str] = []
    extra_indent = section = ""
    for line in lines:
        match = _ONE_LINE_SECTION.match(line)
        if match is not None:
            found += ["", f"{match[1]}:"]
            extra_indent, section = "  ", match[1]
            line = match[2]
        elif not line.startswith(" "):
            extra_indent, section = "", line.rstrip(":")
        line = extra_indent + line
        found.append(_EXCEPTION.sub(r"\1:", line) if section == "Raises" else line)
    return found


def _escape(line: str) -> str:
    def replace(match: re.Match) -> str:
        found = match[0]
        if found.startswith("``"):
            return found
        return f"`{found}`" if found.startswith("`") else f"\\{found}"

    return _MARKUP.sub(replace, line)
