# SPDX-License-Identifier: Apache-2.0
"""Reads parameters from a checkpoint, alone and in any layout."""

from __future__ import annotations

import contextlib
import logging as python_logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from rfjax import stopping
from rfjax.checkpoint.steps import FOLDER, CheckpointError, choose_step, damaged
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
      check: whether to compare the files with their checksums first; unnecessary in
        a process that has already done so.

    Raises:
      CheckpointError: if it is missing, unfinished, damaged or unreadable.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights must be 'ema' or 'raw', got {weights!r}.")
    step = choose_step(workdir, step)
    if check:
        check_step(workdir, step)
    _check_shapes(
        stored_shapes(workdir, weights=weights, step=step),
        _flat_shapes(abstract_params),
        where=f"checkpoint {step} of {workdir}",
    )
    item = {WEIGHTS[weights]: abstract_params}
    path = Path(workdir).absolute() / FOLDER / str(step) / "state"
    with (
        readable(Path(workdir), step),
        ocp.PyTreeCheckpointer() as checkpointer,
    ):
        restored = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
    return restored[WEIGHTS[weights]]


def stored_shapes(
    workdir: Path | str, *, weights: str, step: int
) -> dict[str, tuple[int, ...]]:
    """Path of every stored parameter -> its shape, from the metadata alone.

    Raises:
      CheckpointError: if the metadata cannot be read.
    """
    path = Path(workdir).absolute() / FOLDER / str(step) / "state"
    with readable(Path(workdir), step):
        tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
        return _flat_shapes(tree[WEIGHTS[weights]])


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
    # A failed read leaves orphaned reads behind, which asyncio logs at length.
    asyncio_logger = python_logging.getLogger("asyncio")
    level = asyncio_logger.level
    asyncio_logger.setLevel(python_logging.CRITICAL)
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds
        stopping.raise_again()  # interrupted reads look like damaged ones
        logging.debug("cannot read checkpoint %d", step, exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise damaged(workdir, step, reason) from error
    finally:
        asyncio_logger.setLevel(level)
