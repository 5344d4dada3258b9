# SPDX-License-Identifier: Apache-2.0
"""Reads parameters from a checkpoint, alone and in any layout."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from rfjax import stopping
from rfjax.checkpoint.literal_path import LiteralPath
from rfjax.checkpoint.pins import pinned_for_all
from rfjax.checkpoint.quiet import keep_quiet
from rfjax.checkpoint.steps import FOLDER, CheckpointError, damaged
from rfjax.checkpoint.verify import check_step
from rfjax.errors import UserError

WEIGHTS = {"ema": "ema_params", "raw": "params"}  # name for users -> field of the state


def restore_params(
    workdir: Path | str,
    abstract_params: Any,
    *,
    weights: str = "ema",
    step: int | None = None,
    check: bool = True,
) -> Any:
    """Reads one set of parameters from a checkpoint, and nothing else.

    Args:
      workdir: run folder.
      abstract_params: ShapeDtypeStructs, with shardings or for a single device.
      weights: "ema" or "raw".
      step: which checkpoint; the newest by default.
      check: whether to compare its files with their checksums; False for the second of
        two sets that are read while it is `pinned`.

    Raises:
      CheckpointError: if it is missing, unfinished, damaged or unreadable.
    """
    with pinned_for_all(workdir, step) as step:
        stored = open_params(workdir, weights=weights, step=step, check=check)
        return stored.read(abstract_params)


def open_params(
    workdir: Path | str, *, weights: str, step: int, check: bool = True
) -> StoredParams:
    """Checks a checkpoint, and reads the metadata of one set of its parameters.

    Args:
      workdir: run folder.
      weights: "ema" or "raw".
      step: which checkpoint; it stays there while the caller holds it `pinned`.
      check: whether to compare its files with their checksums.

    Raises:
      CheckpointError: if it is missing, unfinished, damaged or unreadable.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights must be 'ema' or 'raw', got {weights!r}.")
    workdir = Path(workdir)
    if check:
        check_step(workdir, step)
    with readable(workdir, step):
        tree = ocp.PyTreeCheckpointHandler().metadata(_state(workdir, step)).tree
        shapes = _flat_shapes(tree[WEIGHTS[weights]])
    return StoredParams(workdir, step, weights, shapes)


@dataclasses.dataclass(frozen=True)
class StoredParams:
    """One set of parameters of a checkpoint that was checked; read in any parts.

    Attributes:
      workdir: run folder.
      step: of the checkpoint.
      weights: "ema" or "raw".
      shapes: "/"-joined path of every parameter -> its shape.
    """

    workdir: Path
    step: int
    weights: str
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, abstract_params: Any) -> Any:
        """Reads the parameters of a tree, which may be a part of what is stored.

        Args:
          abstract_params: ShapeDtypeStructs, with shardings or for a single device.

        Raises:
          CheckpointError: if it cannot be read, or belongs to another model.
        """
        _check_shapes(
            self.shapes,
            _flat_shapes(abstract_params),
            where=f"checkpoint {self.step} of {self.workdir}",
        )
        item = {WEIGHTS[self.weights]: abstract_params}
        with (
            readable(self.workdir, self.step),
            ocp.PyTreeCheckpointer() as checkpointer,
        ):
            restored = checkpointer.restore(
                _state(self.workdir, self.step),
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                    partial_restore=True,
                ),
            )
        return restored[WEIGHTS[self.weights]]


def _state(workdir: Path, step: int) -> LiteralPath:
    """The folder of the arrays of a checkpoint, absolute as orbax wants it."""
    return LiteralPath(workdir.absolute() / FOLDER / str(step) / "state")


def _flat_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path of every leaf -> its shape."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _check_shapes(
    stored: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> None:
    """Raises CheckpointError on other shapes, which orbax itself would return as is."""
    wrong = [
        f"{path} {stored.get(path, 'missing')} instead of {shape}"
        for path, shape in wanted.items()
        if stored.get(path) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{where} belongs to another model: {'; '.join(wrong[:3])}{more}; read it "
            "with the config.json of its own run folder."
        )


@contextlib.contextmanager
def readable(workdir: Path, step: int) -> Iterator[None]:
    """Turns whatever goes wrong while reading into a CheckpointError with a remedy."""
    keep_quiet()
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds
        stopping.raise_again()  # interrupted reads look like damaged ones
        logging.debug("cannot read checkpoint %d", step, exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise damaged(workdir, step, reason) from error
