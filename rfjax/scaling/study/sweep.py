# SPDX-License-Identifier: Apache-2.0
"""The files of a sweep: its cells, written before any is trained, and its table.

Cells may be added between calls, and those that have not started may change.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import checkpoint, run_folder, whole_files
from rfjax.errors import UserError
from rfjax.scaling.study import manifest
from rfjax.scaling.study.manifest import MANIFEST_FILE, SweepCell, SweepManifest

TABLE_FILE = "runs.csv"


def choose_cells(
    cells: Sequence[SweepCell], names: Sequence[str]
) -> tuple[SweepCell, ...]:
    """The named cells and the trunks that they branch from; all cells without names.

    Raises:
      UserError: a name is not that of a cell.
    """
    if not names:
        return tuple(cells)
    known = {cell.name: cell for cell in cells}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(
                f"cells must be names of cells of the sweep, got {name!r}; did you "
                f"mean {near[0]}? --dry-run lists them."
            )
    wanted = {*names, *(known[name].trunk for name in names)}
    return tuple(cell for cell in cells if cell.name in wanted)


def write_cells(
    cells: Sequence[SweepCell],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    workdir: Path,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    may_change: Callable[[Mapping[str, Any]], tuple[str, ...]],
) -> None:
    """Writes sweep.json and the config.json of every cell; the caller holds the folder.

    Everything is checked first. Killed at any moment, the same call completes the rest.

    Args:
      cells: of the sweep, in order.
      configs: name -> resolved config.
      workdir: sweep folder.
      complete: a config.json -> the same with the fields that are newer than it.
      may_change: a config.json -> names of fields that may differ when it resumes.

    Raises:
      UserError: a cell that was started has another config now, or a file that no
        sweep wrote is in the way; nothing was written then.
    """
    _check_table(workdir)
    hashes = {run_folder.config_hash(config) for config in configs.values()}
    if (workdir / MANIFEST_FILE).exists():
        hashes |= set(manifest.read(workdir).config_hashes)

    def is_due(cell: SweepCell) -> bool:
        """Whether its config is to be written."""
        return _is_due(
            cell,
            configs[cell.name],
            workdir,
            known_hashes=hashes,
            complete=complete,
            may_change=may_change,
        )

    with contextlib.ExitStack() as stack:
        due = [cell for cell in cells if is_due(cell)]
        for cell in due:
            folder = workdir / cell.name
            if folder.is_dir() and not _is_started(folder):
                stack.enter_context(run_folder.exclusive(folder))
        # Again, now that none of them can start elsewhere with the config that it has.
        due = [cell for cell in due if is_due(cell)]
        # First the list, so that whatever a killed sweep leaves is known as its own.
        manifest.write(workdir, SweepManifest(cells, hashes))
        for cell in due:
            _write_config(workdir / cell.name, configs[cell.name])


def write_table(workdir: Path) -> None:
    """Writes runs.csv: one row for every evaluated point of every cell that started."""
    # pandas takes a second to import, and only this needs it.
    from rfjax.scaling.study import runs

    if any(workdir.glob(f"*/{run_folder.RUN_FILE}")):
        with whole_files.replacing(workdir / TABLE_FILE) as partial:
            runs.load_runs(workdir).to_csv(partial, index=False)


def _is_due(
    cell: SweepCell,
    config: Mapping[str, Any],
    workdir: Path,
    *,
    known_hashes: set[str],
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    may_change: Callable[[Mapping[str, Any]], tuple[str, ...]],
) -> bool:
    """Whether the config of a cell is to be written; raises UserError if it must not.

    Args:
      cell: what it is.
      config: its resolved config.
      workdir: sweep folder.
      known_hashes: of the configs that sweeps have written there.
      complete: see `write_cells`.
      may_change: see `write_cells`.
    """
    folder = workdir / cell.name
    path = folder / run_folder.CONFIG_FILE
    if not path.is_file():
        run_folder.check_claim(folder, config)
        return True
    present = whole_files.read_json(path)
    if present == config:
        return False
    if not _is_started(folder):
        is_ours = run_folder.config_hash(present) in known_hashes
        # A sweep of an earlier version kept no hashes, and its config has fewer fields.
        if not is_ours and _completed(present, complete) != config:
            raise UserError(
                f"run folder {folder} holds a {path.name} that no sweep wrote, or that "
                "was edited; move it, or make the change in the sweep's own config."
            )
        return True
    try:
        present = complete(present)
    except UserError as error:
        raise UserError(f"{path} must be the config of a run: {error}") from error
    is_finished = cell.is_finished(workdir)
    # A trunk that is longer than is now asked for serves as well.
    more = ("train.num_steps",) if is_finished else ()
    run_folder.check_claim(
        folder, config, present=present, may_change=may_change(config) + more
    )
    return not is_finished


def _completed(
    config: Mapping[str, Any],
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Mapping[str, Any] | None:
    """The config with newer fields; None if it is that of no run."""
    try:
        return complete(config)
    except UserError:
        return None


def _is_started(folder: Path) -> bool:
    return run_folder.is_started(folder, checkpoints=folder / checkpoint.FOLDER)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the config of a cell; a new folder appears together with it."""
    if folder.is_dir():
        whole_files.write_json(folder / run_folder.CONFIG_FILE, config)
        return
    with whole_files.new_folder(folder) as partial:
        whole_files.write_json(partial / run_folder.CONFIG_FILE, config)


def _check_table(workdir: Path) -> None:
    """Raises UserError if a file that no sweep wrote has the name of the table."""
    path = workdir / TABLE_FILE
    if path.exists() and not path.read_bytes().startswith(b"run,trunk,"):
        raise UserError(
            f"sweep folder {workdir} holds a {TABLE_FILE} that no sweep wrote; move "
            "it, or use another --workdir."
        )
