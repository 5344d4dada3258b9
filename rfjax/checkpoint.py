# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: asynchronous, atomic, restored on any mesh and any number of hosts.

A run folder holds `checkpoints/STEP/state` (step, params, ema_params, opt_state)
and `checkpoints/STEP/data` (position in the data stream), written by orbax into a
temporary folder that is renamed when complete. What cannot be read is an error that
names the step, never "no checkpoint".
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging as python_logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

FOLDER = "checkpoints"
WEIGHTS = {"ema": "ema_params", "raw": "params"}  # name for users -> field of the state


class CheckpointError(ValueError):
    """A checkpoint is missing, unfinished or unreadable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every_steps: optimizer steps between saves; the last step is always saved.
      keep: newest checkpoints that stay on disk.
      keep_steps: further steps that are saved, and stay for good.
    """

    every_steps: int = 1000
    keep: int = 2
    keep_steps: tuple[int, ...] = ()

    def __post_init__(self):
        for field in ("every_steps", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"checkpoint.{field} must be at least 1, "
                    f"got {getattr(self, field)}."
                )
        if self.keep_steps and min(self.keep_steps) < 1:
            raise ValueError(
                "checkpoint.keep_steps must be at least 1, "
                f"got {list(self.keep_steps)}."
            )

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this many steps."""
        return step % self.every_steps == 0 or step in self.keep_steps


def finished_steps(workdir: Path | str) -> list[int]:
    """Steps of the complete checkpoints of a run folder, in order."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def choose_step(workdir: Path | str, step: int | None = None) -> int:
    """The step to read: the one asked for, else the newest.

    Raises:
      CheckpointError: if there is none, or that save was never finished.
    """
    steps = finished_steps(workdir)
    folder = Path(workdir) / FOLDER
    if step is None and steps:
        return steps[-1]
    if step in steps:
        return step
    asked = "a checkpoint" if step is None else f"checkpoint {step}"
    unfinished = sorted(
        path.name for path in folder.glob(f"{'' if step is None else step}*.orbax*tmp*")
    )
    if unfinished:
        reason = f"its save was interrupted and never finished ({unfinished[-1]})"
    elif not Path(workdir).is_dir():
        reason = f"the run folder {workdir} does not exist"
    else:
        reason = f"{folder} holds none of that step"
    choice = f"choose one of the steps {steps}" if steps else "train it first"
    raise CheckpointError(f"{asked} cannot be read: {reason}; {choice}.")


def inherit(workdir: Path | str, *, source: Path | str, step: int) -> None:
    """Gives a run without checkpoints one of another run.

    Files are linked, not copied, where the file system can: a finished checkpoint never
    changes.

    Args:
      workdir: run folder to start.
      source: run folder to take from.
      step: one of its finished steps.
    """
    folder = Path(workdir) / FOLDER
    # The name of a save that was never finished, so a killed copy counts as one.
    partial = folder / f"{step}.orbax-checkpoint-tmp"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(Path(source) / FOLDER / str(step), partial, copy_function=_link)
    os.replace(partial, folder / str(step))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


class Checkpoints:
    """The checkpoints of one run folder, as the training loop sees them."""

    def __init__(self, workdir: Path | str, *, config: CheckpointConfig):
        self.workdir = Path(workdir).absolute()
        self._manager = ocp.CheckpointManager(
            self.workdir / FOLDER,
            item_names=("state", "data"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(
                    [
                        preservation.LatestN(config.keep),
                        preservation.CustomSteps(config.keep_steps),
                    ]
                ),
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state: Any, *, data_position: Mapping[str, int]) -> None:
        """Starts a save; returns as soon as the arrays are copied off the device."""
        if step in finished_steps(self.workdir):
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dict(state)),
                data=ocp.args.JsonSave(dict(data_position)),
            ),
        )

    def restore_newest(self, abstract_state: Any) -> tuple[Any, dict[str, int]] | None:
        """The newest state in the layout of `abstract_state`, and the data position.

        Args:
          abstract_state: the state as ShapeDtypeStructs with shardings; the mesh may
            differ from the one that saved.

        Returns:
          (state, data position), or None if nothing was ever saved.

        Raises:
          CheckpointError: if the newest checkpoint cannot be read.
        """
        steps = finished_steps(self.workdir)
        if not steps:
            return None
        with _readable(self.workdir, steps):
            restored = self._manager.restore(
                steps[-1],
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_as_dict(abstract_state)),
                    data=ocp.args.JsonRestore(),
                ),
            )
        return type(abstract_state)(**restored.state), dict(restored.data)

    def close(self) -> None:
        """Waits for saves under way and ends the writing threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(
    workdir: Path | str,
    abstract_params: Any,
    *,
    weights: str = "ema",
    step: int | None = None,
) -> Any:
    """Reads one set of parameters and nothing else of a checkpoint.

    Args:
      workdir: run folder.
      abstract_params: ShapeDtypeStructs, with shardings or for a single device.
      weights: "ema" or "raw".
      step: which checkpoint; the newest by default.

    Raises:
      CheckpointError: if it is missing, unfinished or unreadable.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}.")
    step = choose_step(workdir, step)
    _check_shapes(
        stored_shapes(workdir, weights=weights, step=step),
        _flat_shapes(abstract_params),
        where=f"checkpoint {step} of {workdir}",
    )
    item = {WEIGHTS[weights]: abstract_params}
    path = Path(workdir).absolute() / FOLDER / str(step) / "state"
    with (
        _readable(Path(workdir), finished_steps(workdir), step=step),
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
    """Shape of every stored parameter by its path, from the metadata alone.

    Raises:
      CheckpointError: if the metadata cannot be read.
    """
    path = Path(workdir).absolute() / FOLDER / str(step) / "state"
    with _readable(Path(workdir), finished_steps(workdir), step=step):
        tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
        return _flat_shapes(tree[WEIGHTS[weights]])


def _flat_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _check_shapes(stored, wanted, *, where: str) -> None:
    """Orbax itself would hand back whatever is stored, in whatever shape."""
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


def _as_dict(state: Any) -> dict[str, Any]:
    """One level of a state dataclass as a dict, the form that is stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


@contextlib.contextmanager
def _readable(workdir: Path, steps: list[int], *, step: int | None = None):
    """Turns whatever goes wrong while reading into a CheckpointError with a remedy."""
    step = steps[-1] if step is None else step
    # A failed read leaves orphaned reads behind, which asyncio prints page by page.
    asyncio_logger = python_logging.getLogger("asyncio")
    level = asyncio_logger.level
    asyncio_logger.setLevel(python_logging.CRITICAL)
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise a dozen kinds
        logging.debug("cannot read checkpoint %d", step, exc_info=True)
        older = [s for s in steps if s < step]
        remedy = (
            f"delete {workdir / FOLDER / str(step)} to go on from step {older[-1]}"
            if older
            else "copy it again from a backup, or delete it to start over"
        )
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {step} of {workdir} is damaged "
            f"({type(error).__name__}: {reason}); {remedy}."
        ) from error
    finally:
        asyncio_logger.setLevel(level)


def abstract_on_device(abstract_params: Any) -> Any:
    """Shapes to be restored whole onto the first local device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params,
    )
