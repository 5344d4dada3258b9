# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: asynchronous, atomic, restored on any mesh and any number of hosts.

A run folder holds `checkpoints/STEP/state` (step, params, ema_params, opt_state),
`checkpoints/STEP/data` (position in the data stream) and `checkpoints/STEP/
checksums.json` (every file), written by orbax into a temporary folder that is renamed
when complete. What is read is compared with its checksums first. What cannot be read is
an error that names step and file, never "no checkpoint".
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging as python_logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from rfjax import checksums, stopping, whole_files
from rfjax.errors import UserError
from rfjax.parallel import processes

FOLDER = "checkpoints"
WEIGHTS = {"ema": "ema_params", "raw": "params"}  # name for users -> field of the state

# Files that orbax writes or alters after the checksums: none of them holds a value.
_WRITTEN_LAST = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    checksums.FILE,
)


class CheckpointError(UserError):
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
                raise UserError(
                    f"checkpoint.{field} must be at least 1, "
                    f"got {getattr(self, field)}."
                )
        if self.keep_steps and min(self.keep_steps) < 1:
            raise UserError(
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
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if path.name.isascii() and path.name.isdigit() and path.is_dir()
    )


def newest_step(workdir: Path | str) -> int | None:
    """The newest complete checkpoint of a run folder, if there is one."""
    steps = finished_steps(workdir)
    return steps[-1] if steps else None


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
    with whole_files.new_folder(folder / str(step)) as partial:
        shutil.copytree(
            Path(source) / FOLDER / str(step),
            partial,
            copy_function=_link,
            dirs_exist_ok=True,
        )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


class Checkpoints:
    """The checkpoints of one run folder, as the training loop sees them.

    Attributes:
      hash_seconds: that this process has spent on checksums, in saves and restores.
    """

    def __init__(self, workdir: Path | str, *, config: CheckpointConfig):
        self.workdir = Path(workdir).absolute()
        self.hash_seconds = 0.0
        self._saving: int | None = None
        self._state_handler = _StateHandler(self)
        self._manager = ocp.CheckpointManager(
            self.workdir / FOLDER,
            item_handlers={
                "state": self._state_handler,
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preservation(config, self.workdir),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._join_checksums
                ),
            ),
        )

    def save(self, step: int, state: Any, *, data_position: Mapping[str, int]) -> None:
        """Starts a save; returns as soon as the arrays are copied off the device."""
        if step in finished_steps(self.workdir):
            return
        self._keep_foreign_leftover(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=_StateSave(_as_dict(state)),
                data=ocp.args.JsonSave(dict(data_position)),
            ),
        )
        self._saving = step

    def _keep_foreign_leftover(self, step: int) -> None:
        """Sets aside a killed save with others' files; orbax would remove it whole."""
        leftover = self.workdir / FOLDER / f"{step}.orbax-checkpoint-tmp"
        if not (processes.is_first() and leftover.is_dir()):
            return
        own = ("state", "data", *_WRITTEN_LAST)
        if not all(entry.name.startswith(own) for entry in leftover.iterdir()):
            aside = leftover.with_name(f"{leftover.name}.kept-{secrets.token_hex(4)}")
            leftover.rename(aside)
            logging.warning("%s holds other files, kept as %s", leftover, aside.name)

    def newly_saved(self) -> int | None:
        """The newest complete step, once after each save that was completed."""
        if self._saving is None or self._manager.is_saving_in_progress():
            return None
        self._saving = None
        return newest_step(self.workdir)

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
        step = newest_step(self.workdir)
        if step is None:
            return None
        start = time.perf_counter()
        check_step(self.workdir, step)
        self.hash_seconds += time.perf_counter() - start
        with _readable(self.workdir, step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=_StateRestore(_as_dict(abstract_state)),
                    data=ocp.args.JsonRestore(),
                ),
            )
        return type(abstract_state)(**restored.state), dict(restored.data)

    def close(self) -> None:
        """Waits for saves under way and ends the writing threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def hash_own_files(self, state_folder: Path) -> None:
        """Hashes what this process wrote of a state, as soon as it is written."""
        start = time.perf_counter()
        index = jax.process_index()
        own = (state_folder / f"ocdbt.process_{index}").rglob("*")
        hashed = checksums.compute(state_folder, own)
        checksums.write(
            state_folder.parent,
            {f"state/{path}": entry for path, entry in hashed.items()},
            part=index,
        )
        self.hash_seconds += time.perf_counter() - start

    def _join_checksums(self) -> None:
        """In the first process, when all have written: one list of every file."""
        start = time.perf_counter()
        folder = self._state_handler.step_folder
        checksums.join_parts(folder, leave_out=_WRITTEN_LAST)
        self.hash_seconds += time.perf_counter() - start


class _StateHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler, and a checksum of each file before the checkpoint is complete.

    Every process of a pod hashes what it wrote itself, in the thread that wrote it.
    """

    def __init__(self, checkpoints: Checkpoints):
        super().__init__()
        self.step_folder = Path()
        self._checkpoints = checkpoints

    async def async_save(self, directory, *args, **kwargs):
        futures = await super().async_save(directory, *args, **kwargs)
        folder = Path(getattr(directory, "path", directory))
        self.step_folder = folder.parent
        return [
            ocp.future.ChainedFuture(
                futures, cb=lambda: self._checkpoints.hash_own_files(folder)
            )
        ]


@ocp.args.register_with_handler(_StateHandler, for_save=True)
@dataclasses.dataclass
class _StateSave(ocp.args.StandardSave):
    """What `_StateHandler` saves."""


@ocp.args.register_with_handler(_StateHandler, for_restore=True)
@dataclasses.dataclass
class _StateRestore(ocp.args.StandardRestore):
    """What `_StateHandler` restores."""


@dataclasses.dataclass(frozen=True)
class _Preservation:
    """Which checkpoints stay: the newest, those asked for, those with others' files."""

    config: CheckpointConfig
    workdir: Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context) -> list[bool]:
        """One answer for each checkpoint, oldest first."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        keep = {*steps[-self.config.keep :], *self.config.keep_steps}
        return [step in keep or self._holds_foreign_files(step) for step in steps]

    def _holds_foreign_files(self, step: int) -> bool:
        folder = self.workdir / FOLDER / str(step)
        try:
            known = checksums.read(folder)
        except ValueError:
            return True
        if known is None:  # of an older rfjax, or of somebody else
            own = {"state", "data", *_WRITTEN_LAST}
            names = (
                {entry.name for entry in folder.iterdir()} if folder.is_dir() else own
            )
            return "_CHECKPOINT_METADATA" not in names or not names <= own
        return bool(checksums.foreign_files(folder, {*known, *_WRITTEN_LAST}))


def check_step(workdir: Path | str, step: int) -> None:
    """Compares every file of a checkpoint with its checksum; all processes share it.

    Raises:
      CheckpointError: if a file is missing or altered; names it.
    """
    workdir = Path(workdir)
    damage = find_damage(
        workdir, step, share=(jax.process_index(), jax.process_count())
    )
    if processes.any_of_them(bool(damage)):
        # Each process names what it found in its own share.
        reason = "; ".join(damage[:3]) or "another process found and names the file"
        raise damaged(workdir, step, reason)


def find_damage(
    workdir: Path | str, step: int, *, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """What is wrong with the files of a checkpoint, in words; empty if nothing is.

    Args:
      workdir: run folder.
      step: one of its finished steps.
      share: (i, n): look at the i-th of n parts of the files only.
    """
    folder = Path(workdir) / FOLDER / str(step)
    try:
        known = checksums.read(folder)
    except ValueError as error:
        return [str(error)]
    if known is None and _had_checksums(folder):
        return [f"{checksums.FILE} is missing"]
    if known is None:
        logging.warning(
            "checkpoint %d was saved without checksums, by an older rfjax; what it "
            "holds cannot be verified",
            step,
        )
        return []
    return checksums.find_damage(folder, known, share=share)


def _had_checksums(folder: Path) -> bool:
    """Whether a checkpoint was saved by an rfjax that writes checksums."""
    try:
        metadata = (folder / "_CHECKPOINT_METADATA").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return _StateHandler.__name__ in metadata


def restore_params(
    workdir: Path | str,
    abstract_params: Any,
    *,
    weights: str = "ema",
    step: int | None = None,
    check: bool = True,
) -> Any:
    """Reads one set of parameters and nothing else of a checkpoint.

    Args:
      workdir: run folder.
      abstract_params: ShapeDtypeStructs, with shardings or for a single device.
      weights: "ema" or "raw".
      step: which checkpoint; the newest by default.
      check: compare the files with their checksums first; not needed again in a
        process that did so.

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
        _readable(Path(workdir), step),
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
    with _readable(Path(workdir), step):
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


def damaged(workdir: Path, step: int, reason: str) -> CheckpointError:
    """The error for a checkpoint that cannot be used, with what to do about it."""
    older = [s for s in finished_steps(workdir) if s < step]
    remedy = (
        f"delete {workdir / FOLDER / str(step)} to resume from step {older[-1]}"
        if older
        else "copy it again from a backup, or delete the run folder to start over"
    )
    return CheckpointError(
        f"checkpoint {step} of {workdir} is damaged ({reason}); {remedy}."
    )


@contextlib.contextmanager
def _readable(workdir: Path, step: int):
    """Turns whatever goes wrong while reading into a CheckpointError with a remedy."""
    # A failed read leaves orphaned reads behind, which asyncio prints page by page.
    asyncio_logger = python_logging.getLogger("asyncio")
    level = asyncio_logger.level
    asyncio_logger.setLevel(python_logging.CRITICAL)
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise a dozen kinds
        stopping.raise_again()  # interrupted reads look like damaged ones
        logging.debug("cannot read checkpoint %d", step, exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise damaged(workdir, step, reason) from error
    finally:
        asyncio_logger.setLevel(level)


def abstract_on_device(abstract_params: Any) -> Any:
    """Shapes to be restored whole onto the first local device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params,
    )
