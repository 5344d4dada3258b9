# SPDX-License-Identifier: Apache-2.0
"""sweep.json: the cells of a sweep folder, for everything that reads or trains them.

A sweep folder holds `sweep.json` and, per cell, a run folder with its `config.json`.
Together they are all that another machine needs, so the folder may be copied.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from rfjax import run_folder, whole_files
from rfjax.errors import MissingFileError, UserError

MANIFEST_FILE = "sweep.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One run of a sweep; its files are the run folder `name` of the sweep folder.

    Attributes:
      name: of its run folder.
      num_steps: optimizer steps at its end, those of the trunk included.
      new_flops: training FLOPs that it adds, those of a shared trunk left out.
      trunk: name of the cell that it branches from, if there is one.
      fork_step: where it leaves the trunk.
      depth: number of blocks; None in a list of an earlier version.
    """

    name: str
    num_steps: int
    new_flops: float
    trunk: str | None = None
    fork_step: int | None = None
    depth: int | None = None

    def command_line(self, workdir: Path | str) -> tuple[str, ...]:
        """The words that train this cell alone, or resume it.

        Relative paths in its config, such as `data.path`, start at its run folder, so
        the words may be run in any folder.

        Args:
          workdir: sweep folder, by its name on the machine that trains.
        """
        folder = Path(workdir) / self.name
        words = (
            "rfjax",
            "train",
            f"--config={folder / run_folder.CONFIG_FILE}",
            f"--workdir={folder}",
        )
        if self.trunk is None:
            return words
        return (*words, f"--branch-from={Path(workdir) / self.trunk}")

    def is_finished(self, workdir: Path | str) -> bool:
        """Whether it has been trained to its present length in this sweep folder."""
        run = run_folder.read_run(Path(workdir) / self.name)
        # A run that was killed before its first step has no status yet.
        return run.get("status") == "finished" and run.get("step", 0) >= self.num_steps


@dataclasses.dataclass(frozen=True)
class SweepManifest:
    """What sweep.json holds.

    Attributes:
      cells: in the order in which they are trained on one machine.
      config_hashes: of every config that a sweep has written to this folder, earlier
        ones included: how a sweep knows which files are its own to replace.
    """

    cells: Sequence[SweepCell]
    config_hashes: Collection[str]


def read(workdir: Path | str) -> SweepManifest:
    """The manifest of a sweep folder.

    Raises:
      MissingFileError: if there is none.
      UserError: if the file is no manifest.
    """
    path = Path(workdir) / MANIFEST_FILE
    if not path.is_file():
        raise MissingFileError(
            f"sweep folder {workdir} holds no {MANIFEST_FILE}; make it with "
            "`rfjax sweep`."
        )
    try:
        fields = json.loads(path.read_text("utf-8"))
        cells = [SweepCell(**cell) for cell in fields["cells"]]
        return SweepManifest(cells, set(fields["config_hashes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"sweep folder {workdir} holds a {MANIFEST_FILE} that no sweep wrote; move "
            "it, or use another --workdir."
        ) from error


def write(workdir: Path | str, manifest: SweepManifest) -> None:
    """Writes the manifest of a sweep folder."""
    fields = {
        "cells": [dataclasses.asdict(cell) for cell in manifest.cells],
        "config_hashes": sorted(manifest.config_hashes),
    }
    whole_files.write_json(Path(workdir) / MANIFEST_FILE, fields)
