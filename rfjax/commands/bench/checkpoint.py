# SPDX-License-Identifier: Apache-2.0
"""How long a checkpoint holds training up on the available devices."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rfjax import whole_files
from rfjax.bench.checkpoint import CheckpointReport, measure_saving
from rfjax.commands.flags import JsonFile, Report, RunConfig
from rfjax.commands.job import make_job_here
from rfjax.errors import UserError
from rfjax.parallel.mesh import put_batch
from rfjax.value_types import LocalPath, PositiveInt, checked


@checked
def bench_checkpoint(
    config: RunConfig,
    *,
    folder: LocalPath | None = None,
    rounds: PositiveInt = 5,
    json_file: JsonFile = None,
    report: Report = lambda line: None,
) -> CheckpointReport:
    """Times how long a checkpoint holds training up, compared with bare writes.

    Args:
      config: the resolved config; checkpoint.every_steps says how often it saves.
      folder: on the disk to measure, that of temporary files if absent; a new folder
        in it is written and removed.
      rounds: how often everything is timed, in turns.
      json_file: file to write the figures to.
      report: receives a line for each round.

    Raises:
      UserError: a wrong setting.

    Example:
      rfjax bench checkpoint --config=configs/bench.py --folder=/mnt/disk
    """
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--folder must be an existing folder, got {folder}.")
    whole_files.check_writable(json_file, field="--json")
    job, _ = make_job_here(config)
    batch = put_batch(next(job.stream), mesh=job.mesh)
    rate = config.optimizer.learning_rate
    with tempfile.TemporaryDirectory(dir=folder) as own_folder:
        measured = measure_saving(
            job.init_state(),
            job.abstract_state,
            train_step=lambda state: job.train_step(state, batch, rate)[0],
            config=config.checkpoint,
            folder=Path(own_folder),
            rounds=rounds,
            report=report,
        )
    if json_file is not None:
        whole_files.write_json(json_file, measured.to_json())
    return measured
