# SPDX-License-Identifier: Apache-2.0
"""Trains a run folder, resumes it, or branches from another run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from clu import parameter_overview

from rfjax import checkpoint, run_folder, stopping
from rfjax import config as configs
from rfjax.commands.flags import Report, RunConfig
from rfjax.commands.job import (
    describe_run,
    make_job_here,
)
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.parallel import processes
from rfjax.train import loop


def train(
    config: RunConfig,
    *,
    workdir: Path | str,
    branch_from: Path | str | None = None,
    report: Report = lambda line: None,
) -> None:
    """Trains a run to its last step, or resumes it where it was stopped or killed.

    Args:
      config: the resolved config.
      workdir: run folder; made if missing.
      branch_from: run folder of a run at constant rate with otherwise the same config.
        A fresh run starts from its newest checkpoint before the own cooldown, and is
        to the bit what it would have been from scratch.
      report: receives the parameter table and a line for each event.

    Raises:
      Stopped: a signal asked to stop; what was trained is saved.
      UserError: config, data, mesh and folder do not fit together.
      MissingFileError: the data is missing.

    Example:
      rfjax train --config=configs/emoji.py --workdir=runs/emoji --config.seed=1
    """
    workdir = Path(workdir)
    job, manifest = make_job_here(config)
    if branch_from is not None:
        _check_branch(config, source=Path(branch_from))
    with contextlib.ExitStack() as stack:

        def claim_folder() -> None:
            stack.enter_context(run_folder.exclusive(workdir))
            has_run = (workdir / run_folder.CONFIG_FILE).is_file()
            steps = checkpoint.finished_steps(workdir)
            run_folder.check_not_lost(
                workdir, saved_steps=steps, checkpoints=workdir / checkpoint.FOLDER
            )
            run_folder.claim(
                workdir,
                configs.to_dict(config),
                started_with=configs.to_dict(configs.load(workdir))
                if has_run
                else None,
            )
            describe_run(workdir, config, manifest)
            if not has_run:
                run_folder.update_run(workdir, saved_step=None)
            if branch_from is not None:
                _branch(workdir, config, source=Path(branch_from))

        processes.on_first(claim_folder)
        report(parameter_overview.get_parameter_overview(
            job.abstract_state.params, include_stats=False
        ))  # fmt: skip
        steps = checkpoint.finished_steps(workdir)
        if steps:
            report(f"resuming at step {steps[-1]} of {config.train.num_steps}")
        try:
            loop.run(job, workdir=workdir)
        except stopping.Stopped as stopped:
            step = checkpoint.newest_step(workdir) or 0
            with contextlib.suppress(OSError):  # the terminal may be gone
                report(
                    f"{stopped}, saved at step {step}; run the same command to resume"
                )
            raise
    report(f"finished {config.train.num_steps} steps in {workdir}")


def _check_branch(config: Config, *, source: Path) -> None:
    """Refuses to branch from a run that is not the same up to the cooldown."""
    trunk = configs.load(source)
    changed = run_folder.differences(
        configs.to_dict(trunk),
        configs.to_dict(config),
        may_change=(*run_folder.MAY_CHANGE, "train.num_steps", "optimizer.cooldown"),
    )
    if trunk.optimizer.cooldown_steps:
        changed.append("optimizer.cooldown_steps: not 0 there")
    if changed:
        raise UserError(
            f"a run can only branch from a constant-rate run of the same config, and "
            f"{source} has another ({'; '.join(changed)}); train from scratch, or "
            "branch from another run."
        )


def _branch(workdir: Path, config: Config, *, source: Path) -> None:
    """Lets a run without checkpoints start from those of a run at constant rate."""
    if checkpoint.finished_steps(workdir):
        return
    fork_step = config.train.num_steps - config.optimizer.cooldown_steps
    usable = [s for s in checkpoint.finished_steps(source) if s <= fork_step]
    if not usable:
        return
    damage = checkpoint.find_damage(source, usable[-1])
    if damage:  # or it would be this run's, which could not be mended
        raise checkpoint.damaged(source, usable[-1], "; ".join(damage[:3]))
    run_folder.update_run(workdir, trunk=source.resolve().name)
    # There before any metrics: without it they would tell of checkpoints that vanished.
    (workdir / checkpoint.FOLDER).mkdir(exist_ok=True)
    # Before the checkpoint: killed in between, the next call does both again.
    run_folder.inherit_metrics(workdir, source=source, last_step=usable[-1])
    checkpoint.inherit(workdir, source=source, step=usable[-1])
