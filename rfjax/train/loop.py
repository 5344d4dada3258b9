# SPDX-License-Identifier: Apache-2.0
"""The training loop: timing, files and signals around the pure step."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from rfjax import checkpoint, run_folder, schema, stopping
from rfjax.checkpoint import CheckpointConfig, Checkpoints
from rfjax.data import TrainStream
from rfjax.data.implausible import describe_bad_rows
from rfjax.parallel import processes
from rfjax.parallel.mesh import abstract_batch, put_batch
from rfjax.train.divergence import TrainingDiverged, Watch
from rfjax.train.metric_writers import AllWriters, MetricWriterConfig
from rfjax.train.state import TrainState
from rfjax.train.step import TrainStep, compiled_for
from rfjax.types import Evaluator
from rfjax.value_types import Bounds, PositiveInt, check_fields

LossRatio = Annotated[
    float, Bounds(1, open_low=True, remedy="choose for example 100")
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and size of a run.

    Attributes:
      num_steps: optimizer steps.
      global_batch_size: examples per step, over all devices and hosts.
      micro_batches: equal parts that a batch is worked through in, to save memory.
      log_every_steps: steps between lines of metrics.
      max_loss_ratio: a loss above this many times its lowest running median, and 4
        times this number at least, ends the run as diverged. To predict nothing costs
        4 at most, whatever the objective.
    """

    num_steps: PositiveInt
    global_batch_size: PositiveInt = 256
    micro_batches: PositiveInt = 1
    log_every_steps: PositiveInt = schema.changeable(50)
    max_loss_ratio: LossRatio = schema.changeable(100.0)

    def __post_init__(self):
        check_fields(self, section="train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything the loop needs, built once by the caller.

    Attributes:
      config: length and size of the run.
      checkpoint: when to save.
      mesh: where arrays live.
      abstract_state: TrainState of ShapeDtypeStructs with shardings.
      init_state: () -> fresh TrainState in those shardings.
      train_step: jitted step, the state donated.
      stream: training batches.
      learning_rate: finished steps -> rate of the next update.
      evaluators: what is measured now and then, of raw and EMA weights.
      metric_writers: where metrics go, beside metrics.jsonl.
      flops_per_sample: model FLOPs of forward and backward for one example.
      bad_validation: () -> what is wrong with the held-out examples, None if nothing.
    """

    config: TrainConfig
    checkpoint: CheckpointConfig
    mesh: Mesh
    abstract_state: TrainState
    init_state: Callable[[], TrainState]
    train_step: TrainStep
    stream: TrainStream
    learning_rate: Callable[[int], float]
    evaluators: Sequence[Evaluator]
    metric_writers: Sequence[MetricWriterConfig]
    flops_per_sample: int
    bad_validation: Callable[[], str | None] = lambda: None

    def evaluators_at(self, step: int) -> list[Evaluator]:
        """Those that measure the state after this many steps."""
        if step == 0:
            return []
        is_last = step == self.config.num_steps
        return [e for e in self.evaluators if is_last or step % e.every_steps == 0]

    def step_for_all_sizes(self) -> TrainStep:
        """The train step; of several buckets each has its program compiled now."""
        size = self.config.global_batch_size
        batches = [
            abstract_batch(spec, size=size, mesh=self.mesh)
            for spec in self.stream.specs
        ]
        rate = self.learning_rate(0)
        return compiled_for(self.train_step, self.abstract_state, batches, rate)


def run(job: Job, *, workdir: Path) -> TrainState:
    """Trains to the last step; resumes automatically.

    Args:
      job: what to do.
      workdir: run folder, claimed and locked by the caller.

    Returns:
      The state after the last step.

    Raises:
      Stopped: when a signal asked to stop; the steps done are saved.
      TrainingDiverged: something is not finite, or the loss blew up; what is ruined is
        not saved, and the last good checkpoint stays.
      CheckpointError: when the newest checkpoint cannot be read.
    """
    with stopping.handling() as stop:
        # A process that ended by itself would leave the others waiting: they agree
        # first.
        stop.unsaved = jax.process_count() > 1
        try:
            return _run(job, workdir, stop)
        finally:
            stop.unsaved = False


def _run(job: Job, workdir: Path, stop: stopping.StopSignals) -> TrainState:
    """Trains between the beginning and the end of the run's record."""
    checkpoints = Checkpoints(workdir, config=job.checkpoint)
    state = start_state(job, checkpoints)
    record = _Record(workdir, step=int(state.step), writers=job.metric_writers)
    with (
        stop.last_words(
            lambda outcome: record.update(
                status=outcome, saved_step=checkpoint.newest_step(workdir)
            )
        ),
        progress_bar(job, int(state.step)) as bar,
    ):
        status = "failed"
        try:
            try:
                record.open()
                state = _train(job, state, checkpoints, record, stop=stop, bar=bar)
            except Exception:
                stop.raise_again()
                raise
            finally:
                checkpoints.close()  # a save that fails here is a run that failed
            status = "finished"
            return state
        except TrainingDiverged as error:
            status = "diverged"
            if checkpoints.disown(error.ruined_step):
                record.update(saved_step=checkpoint.newest_step(workdir))
            raise
        except stopping.Stopped:
            status = "stopped"
            raise
        finally:
            record.close(status=status, saved_step=checkpoints.newly_saved())


def _train(
    job: Job,
    state: TrainState,
    checkpoints: Checkpoints,
    record: _Record,
    *,
    stop: stopping.StopSignals,
    bar: tqdm,
) -> TrainState:
    """The loop itself; saves before it raises Stopped."""
    step = int(state.step)
    ballot = processes.Ballot()

    def check_in() -> None:
        """Raises Stopped in all processes once one was asked to stop."""
        if processes.any_of_them(stop.requested is not None):
            raise stopping.Stopped(stop.requested or signal.SIGTERM)

    # Evaluations that a signal interrupted are run now.
    owed = [e for e in job.evaluators_at(step) if not record.holds(e.name, step)]
    # Now, while nothing is lost if a signal ends the compilation.
    for evaluator in job.evaluators if step < job.config.num_steps else owed:
        evaluator.compile(state.params)
    train_step = job.step_for_all_sizes() if step < job.config.num_steps else None
    if stop.unsaved:  # several processes, none of which was interrupted so far
        check_in()
    watch = make_watch(job, checkpoints, earlier_losses=record.losses())
    log = IntervalLog(job, first_step=step, write=record.write_metrics, watch=watch)
    if owed:
        log.evaluate(owed, state, step, check_in)
    while step < job.config.num_steps:
        wait_start = time.perf_counter()
        # Copied to the devices while these still run the step before.
        batch = put_batch(next(job.stream), mesh=job.mesh)
        log.add_wait(time.perf_counter() - wait_start)
        question = ballot.ask(stop.requested is not None)
        state, metrics = train_step(state, batch, job.learning_rate(step))
        step += 1
        stop.unsaved = True
        # Looks at the step before this one, so the device always has work.
        log.add(step, metrics, bar=bar)
        checkpoints.prove(watch.proven_step)
        record.note_saved(checkpoints.newly_saved())

        stopped = ballot.answer(question, now=stop.requested is not None)
        due = job.evaluators_at(step)
        if due and not stopped:
            log.flush()
            try:
                log.evaluate(due, state, step, check_in)
            except stopping.Stopped:
                stopped = True
        if stopped or step == job.config.num_steps or job.checkpoint.is_due(step):
            log.flush()
            watch.check_state(step, state)
            checkpoints.prove(watch.proven_step)
            checkpoints.save(
                step,
                state,
                data_position=job.stream.get_state(),
                is_proven=step == job.config.num_steps,  # its evaluation was good
            )
            record.step = step
            # The save before this one is complete, or this one would still wait.
            record.note_saved(checkpoint.newest_step(checkpoints.workdir))
        if stopped:
            raise stopping.Stopped(stop.requested or signal.SIGTERM)
    return state


def make_watch(
    job: Job, checkpoints: Checkpoints, *, earlier_losses: Sequence[float]
) -> Watch:
    """What looks for divergence of a run that starts or resumes."""

    def bad_examples(step: int | None) -> str | None:
        """What is wrong with the batch of a step; reads it again, as the last one."""
        if step is None:
            bad = job.bad_validation()
        else:
            position = (step - 1) * job.config.global_batch_size
            job.stream.set_state({"global_next_index": position})
            bad = describe_bad_rows(next(job.stream), name_of=job.stream.name_of)
        if processes.any_of_them(bad is not None):
            # Each process names what it found among its own rows.
            return bad or "another process found the examples and names them"
        return None

    return Watch(
        max_loss_ratio=job.config.max_loss_ratio,
        earlier_losses=earlier_losses,
        mesh=job.mesh,
        bad_examples=bad_examples,
        saved_step=checkpoints.newest_without,
    )


def start_state(job: Job, checkpoints: Checkpoints) -> TrainState:
    """A run starts from its newest checkpoint if there is one, else from scratch."""
    restored = checkpoints.restore_newest(job.abstract_state)
    if restored is None:
        return job.init_state()
    state, data_position = restored
    step = checkpoint.newest_step(checkpoints.workdir)
    expected = step * job.config.global_batch_size
    if int(state.step) != step or set(data_position.values()) != {expected}:
        raise checkpoint.damaged(
            checkpoints.workdir,
            step,
            f"it holds step {int(state.step)} and data position {dict(data_position)}, "
            f"which must be {step} and {expected}",
        )
    if step == job.config.num_steps:
        checkpoints.remove_old()  # a kill may have come between the last save and this
    job.stream.set_state(data_position)
    logging.info("resuming at step %d", step)
    return state


class _Record:
    """What the first process writes down about a run; the others write nothing.

    Attributes:
      step: the newest that is saved, or being saved.
    """

    def __init__(
        self, workdir: Path, *, step: int, writers: Sequence[MetricWriterConfig]
    ):
        self.step = step
        self._workdir = workdir
        self._writers = writers
        self._writer: AllWriters | None = None

    def open(self) -> None:
        """Drops the metrics of steps to be repeated, marks the run as running."""
        if processes.is_first():
            run_folder.trim_metrics(self._workdir, last_step=self.step)
            self.update(
                status="running", saved_step=checkpoint.newest_step(self._workdir)
            )
            self._writer = AllWriters(self._workdir, self._writers)

    @property
    def write_metrics(self) -> Callable[[int, Mapping[str, float]], None] | None:
        """(step, metrics) -> None, or None if this process writes nothing."""
        return None if self._writer is None else self._writer.write

    def losses(self) -> list[float]:
        """The training losses of a run that resumes, as far as they were written."""
        lines = run_folder.read_metrics(self._workdir)
        return [
            line["train/loss"]
            for line in lines
            if "train/loss" in line and line["step"] <= self.step
        ]

    def update(self, **fields: Any) -> None:
        """Sets fields of run.json."""
        if processes.is_first() or processes.first_is_gone():
            run_folder.update_run(self._workdir, **fields)

    def note_saved(self, step: int | None) -> None:
        """Remembers that there is a checkpoint, should all of them vanish."""
        if step is not None:
            self.update(saved_step=step)

    def holds(self, evaluator: str, step: int) -> bool:
        """Whether an evaluator has measured a step; all processes get one answer."""
        found = processes.is_first() and any(
            line["step"] == step
            and any(key.startswith(f"{evaluator}/") for key in line)
            for line in run_folder.read_metrics(self._workdir)
        )
        return processes.any_of_them(found)

    def close(self, *, status: str, saved_step: int | None) -> None:
        """Ends the record with the outcome of the run."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            saved = {} if saved_step is None else {"saved_step": saved_step}
            self.update(status=status, step=self.step, **saved)


class IntervalLog:
    """Collects device metrics and writes their means, one step behind the device."""

    def __init__(
        self,
        job: Job,
        *,
        first_step: int,
        write: Callable[[int, Mapping[str, float]], None] | None,
        watch: Watch,
    ):
        self._job = job
        self._watch = watch
        self._write = write
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._first_step = self._last_logged = first_step
        self._started = self._interval_start = time.perf_counter()
        self._paused_seconds = self._waited_seconds = 0.0

    def add_wait(self, seconds: float) -> None:
        """Counts time spent waiting for data."""
        self._waited_seconds += seconds

    def add(self, step: int, metrics: dict[str, jax.Array], *, bar: tqdm) -> None:
        """Notes the metrics of a step that was just dispatched."""
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
            if self._pending[-1][0] % self._job.config.log_every_steps == 0:
                bar.set_postfix_str(f"loss {self.flush():.4f}")
        self._pending.append((step, metrics))
        advance(bar, is_first=step == self._first_step + 1)

    def flush(self) -> float:
        """Writes one line for the pending steps; returns their mean loss.

        Raises:
          TrainingDiverged: a loss or gradient is not finite, or the loss blew up.
        """
        if not self._pending:
            return math.nan
        steps = [step for step, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        self._pending = []
        means = {
            f"train/{name}": float(sum(m[name] for m in fetched)) / len(fetched)
            for name in fetched[0]
        }
        now = time.perf_counter()
        seconds = max(now - self._interval_start - self._paused_seconds, 1e-9)
        batch_size = self._job.config.global_batch_size
        samples_per_second = (steps[-1] - self._last_logged) * batch_size / seconds
        flops_per_second = samples_per_second * self._job.flops_per_sample
        if self._write is not None:
            self._write(
                steps[-1],
                {
                    "samples": steps[-1] * batch_size,
                    **means,
                    "train/learning_rate": float(
                        self._job.learning_rate(steps[-1] - 1)
                    ),
                    "perf/samples_per_second": samples_per_second,
                    "perf/model_tflops_per_device": flops_per_second
                    / self._job.mesh.size
                    / 1e12,
                    "perf/input_wait_fraction": self._waited_seconds / seconds,
                    "perf/seconds": now - self._started,
                },
            )
        self._last_logged = steps[-1]
        self._interval_start, self._paused_seconds = now, 0.0
        self._waited_seconds = 0.0
        for step, values in zip(steps, fetched, strict=True):
            self._watch.check_step(
                step,
                loss=float(values["loss"]),
                grad_norm=float(values["grad_norm"]),
            )
        return means["train/loss"]

    def evaluate(
        self,
        evaluators: Sequence[Evaluator],
        state: TrainState,
        step: int,
        check_in: Callable[[], None],
    ) -> None:
        """Runs evaluators and writes their metrics, outside the training time.

        Raises:
          TrainingDiverged: a result is not finite, or a loss blew up.
        """
        start = time.perf_counter()
        metrics = {
            f"{evaluator.name}{weights}/{name}": value
            for evaluator in evaluators
            for weights, params in (("", state.params), ("_ema", state.ema_params))
            for name, value in evaluator(params, check_in=check_in).items()
        }
        if self._write is not None:
            samples = step * self._job.config.global_batch_size
            self._write(step, {"samples": samples, **metrics})
        self._watch.check_evaluation(step, metrics)
        self._paused_seconds += time.perf_counter() - start


def progress_bar(job: Job, step: int) -> tqdm:
    """Rate, loss and ETA on the console of the first host."""
    return tqdm(
        total=job.config.num_steps,
        initial=step,
        desc="train",
        unit="step",
        mininterval=1.0,
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
    )


def advance(bar: tqdm, *, is_first: bool) -> None:
    """Counts a step that was dispatched.

    The time of the first goes to the compiler: it is left out of the rate, and until
    the second there is neither rate nor ETA.
    """
    if not is_first:
        bar.update()
        return
    bar.n = bar.initial = bar.last_print_n = bar.n + 1
    bar.unpause()
    bar.refresh()
