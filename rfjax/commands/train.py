# SPDX-License-Identifier: Apache-2.0
"""Trains a run folder, resumes it, or branches from another run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import jax

from rfjax import checkpoint, run_folder, schema, stopping
from rfjax.commands.flags import Report, RunConfig
from rfjax.commands.job import (
    check_agreement,
    describe_run,
    make_job_here,
)
from rfjax.config import Config, config_to_dict, load_config
from rfjax.errors import MissingFileError, UserError
from rfjax.parallel import agreement, processes
from rfjax.train import loop
from rfjax.value_types import LocalPath, checked


@checked
def train(
    config: RunConfig,
    *,
    workdir: LocalPath,
    branch_from: LocalPath | None = None,
    report: Report = lambda line: None,
) -> None:
    """Trains a run to its last step, or resumes it where it was stopped or killed.

    Args:
      config: the resolved config.
      workdir: run folder; made if missing.
      branch_from: RUN or RUN:STEP, the run folder of a constant-rate run of otherwise
        the same config. A run that has no checkpoint yet starts from that step of it,
        or from the newest before its own cooldown, or from scratch if there is none
        that early; the result is bit-identical to training from scratch.
      report: receives a line about the model, and one for each event.

    Raises:
      Stopped: a signal asked to stop; what was trained is saved.
      UserError: config, data, mesh and folder do not fit together.
      MissingFileError: the data is missing.

    Example:
      rfjax train --config=configs/emoji.py --workdir=runs/emoji --config.seed=1
    """
    workdir = Path(workdir)
    check_agreement(config, branch_from=str(branch_from))
    checkpoint.check_folder(workdir, last_step=config.train.num_steps)
    config.ema.check_steps(config.train.num_steps)
    job, manifest = make_job_here(config)
    if branch_from is not None:
        trunk, trunk_step = _parse_branch(branch_from)
        _check_branch(config, source=trunk, step=trunk_step, workdir=workdir)
    if processes.is_joined():
        agreement.check_shared(workdir, share=processes.share, field="workdir")
    with contextlib.ExitStack() as stack:

        def claim_folder() -> None:
            """Holds the folder from now on, and makes it that of this run."""
            stack.enter_context(run_folder.exclusive(workdir))
            has_config = (workdir / run_folder.CONFIG_FILE).is_file()
            steps = checkpoint.finished_steps(workdir)
            run_folder.check_not_lost(
                workdir, saved_steps=steps, checkpoints=workdir / checkpoint.FOLDER
            )
            run_folder.claim(
                workdir,
                config_to_dict(config, folder=workdir),
                present=config_to_dict(load_config(workdir), folder=workdir)
                if has_config
                else None,
                may_change=schema.changeable_fields(config),
            )
            describe_run(workdir, config, manifest)
            if not steps and "saved_step" not in run_folder.read_run(workdir):
                run_folder.update_run(workdir, saved_step=None)
            if branch_from is not None:
                report(_branch(workdir, config, source=trunk, step=trunk_step))

        processes.on_first(claim_folder)
        report(_summary(job, config))
        for text in config.ema.shortcomings(config.train.num_steps):
            report(f"warning: {text}.")
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


def _summary(job: loop.Job, config: Config) -> str:
    """What is trained on what, in one line."""
    leaves = jax.tree.leaves(job.abstract_state.params)
    axes = [f"{axis}={size}" for axis, size in job.mesh.shape.items() if size > 1]
    return (
        f"depth {config.model.depth}, {sum(leaf.size for leaf in leaves):,} parameters "
        f"in {len(leaves)} arrays, on {job.mesh.size} {jax.devices()[0].device_kind} "
        f"{'device' if job.mesh.size == 1 else 'devices'}"
        f"{' (' + ', '.join(axes) + ')' if axes else ''}; `rfjax layout` lists them"
    )


def _parse_branch(branch_from: Path | str) -> tuple[Path, int | None]:
    """RUN or RUN:STEP to run folder and step; a folder of that very name is a RUN."""
    run, _, step = str(branch_from).rpartition(":")
    if run and step.isascii() and step.isdigit() and not Path(branch_from).is_dir():
        return Path(run), int(step)
    return Path(branch_from), None


def _check_branch(
    config: Config, *, source: Path, step: int | None, workdir: Path
) -> None:
    """Refuses to branch from a run that is not the same up to the cooldown."""
    if not (source / run_folder.CONFIG_FILE).is_file():
        raise MissingFileError(
            f"branch_from must be RUN or RUN:STEP with a run folder RUN, and {source} "
            f"holds no {run_folder.CONFIG_FILE}; train it first."
        )
    trunk = load_config(source)
    changed = run_folder.differences(
        config_to_dict(trunk),
        config_to_dict(config),
        may_change=(
            *schema.changeable_fields(config),
            "train.num_steps",
            "optimizer.cooldown",
        ),
    )
    if trunk.optimizer.cooldown_steps:
        changed.append("optimizer.cooldown_steps: not 0 there")
    if changed:
        raise UserError(
            f"a run can only branch from a constant-rate run of the same config, and "
            f"{source} has another ({'; '.join(changed)}); train from scratch, or "
            "branch from another run."
        )
    if not checkpoint.finished_steps(workdir):
        _choose_branch_step(config, source=source, step=step)


def _choose_branch_step(
    config: Config, *, source: Path, step: int | None
) -> int | None:
    """The checkpoint of a trunk to start from; None if it has none that early.

    Raises:
      UserError: the step that was asked for is not there, or lies in the cooldown.
    """
    fork_step = config.train.num_steps - config.optimizer.cooldown_steps
    steps = checkpoint.finished_steps(source)
    usable = [s for s in steps if s <= fork_step]
    if step is None:
        return usable[-1] if usable else None
    if step not in usable:
        raise UserError(
            f"branch_from {source}:{step} must name a checkpoint up to step "
            f"{fork_step}, where the cooldown starts, and {source} has those of steps "
            f"{steps}; choose another, or leave the step out."
        )
    return step


def _branch(workdir: Path, config: Config, *, source: Path, step: int | None) -> str:
    """Lets a run without checkpoints start from one of a constant-rate run.

    Returns:
      What was done, in words.
    """
    if checkpoint.finished_steps(workdir):
        return f"has checkpoints of its own, {source} is unused"
    # Also without a checkpoint: to the bit it is the run that branched there, and laws
    # count runs of one trunk as related.
    run_folder.update_run(workdir, trunk=source.resolve().name)
    while (chosen := _choose_branch_step(config, source=source, step=step)) is not None:
        try:
            with checkpoint.pinned(source, chosen):
                _copy_trunk(workdir, source=source, step=chosen)
            return f"branching from {source} at step {chosen}"
        except checkpoint.CheckpointRemoved:  # the trunk is being trained
            if step is not None:
                raise
    return f"{source} has no checkpoint before the cooldown; training from scratch"


def _copy_trunk(workdir: Path, *, source: Path, step: int) -> None:
    """Gives a run the metrics and a checkpoint of its trunk."""
    damage = checkpoint.find_damage(source, step)
    if damage:  # or it would be this run's, which could not be repaired
        raise checkpoint.damaged(source, step, "; ".join(damage[:3]))
    # There before any metrics: without it they would be those of lost checkpoints.
    (workdir / checkpoint.FOLDER).mkdir(exist_ok=True)
    # Before the checkpoint: killed in between, the next call does both again.
    run_folder.inherit_metrics(workdir, source=source, last_step=step)
    checkpoint.inherit(workdir, source=source, step=step)
