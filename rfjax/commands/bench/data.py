# SPDX-License-Identifier: Apache-2.0
"""How fast a data set is read."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rfjax import whole_files
from rfjax.bench.data import ReadingReport, measure_reading, write_random_dataset
from rfjax.commands.flags import JsonFile
from rfjax.value_types import LocalPath, PositiveInt, checked


@checked
def bench_data(
    root: Annotated[LocalPath | None, Parameter(name="--data")] = None,
    *,
    rounds: PositiveInt = 5,
    json_file: JsonFile = None,
) -> ReadingReport:
    """Times reading a data set, compared with bare ArrayRecord reads.

    Args:
      root: data folder; random records in the layout of SD3 at 256 px if absent.
      rounds: how often both are timed, in turns.
      json_file: file to write the figures to.

    Raises:
      UserError: a wrong setting, or no data folder.

    Example:
      rfjax bench data --data=data/emoji
    """
    whole_files.check_writable(json_file, field="--json")
    if root is not None:
        measured = measure_reading(root, rounds=rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random_dataset(Path(folder) / "random")
            measured = measure_reading(Path(folder) / "random", rounds=rounds)
    if json_file is not None:
        whole_files.write_json(json_file, dataclasses.asdict(measured))
    return measured
