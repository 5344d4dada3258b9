# SPDX-License-Identifier: Apache-2.0
"""Checks shared by export and import: choices, and the tensors of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rfjax.errors import UserError


def check_choice(field: str, value: str, choices: Collection[str]) -> None:
    """Raises UserError unless `value` is one of the choices."""
    if value not in choices:
        raise UserError(f"{field} must be one of {', '.join(choices)}, got {value!r}.")


def check_shapes(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> None:
    """Raises UserError listing missing, unexpected and misshapen tensors, if any."""
    both = expected.keys() & found.keys()
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} {found[name]} for {expected[name]}"
            for name in sorted(both)
            if found[name] != expected[name]
        ],
    }
    lists = [f"{kind}: {_shorten(items)}" for kind, items in problems.items() if items]
    if lists:
        raise UserError(
            f"{where} must hold exactly the tensors of its model; {'; '.join(lists)}."
        )


def _shorten(items: list[str], most: int = 20) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
