# SPDX-License-Identifier: Apache-2.0
"""The training loop: all the clocks, files and signals around the pure step."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from rfjax import run_folder
from rfjax.checkpoint import CheckpointConfig, Checkpoints
from rfjax.parallel.mesh import put_batch
from rfjax.train.metrics import MetricsWriter
from rfjax.train.state import TrainState
from rfjax.train.step import TrainStep
from rfjax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and size of a run.

    Attributes:
      num_steps: optimizer steps.
      global_batch_size: examples a step, over all devices and hosts.
      micro_batches: equal parts a batch is worked through in, to save memory.
      log_every_steps: steps between lines of metrics.
    """

    num_steps: int
    global_batch_size: int = 256
    micro_batches: int = 1
    log_every_steps: int = 50

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"train.{field.name} must be at least 1, "
                    f"got {getattr(self, field.name)}."
                )


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


class DataStream(Protocol):
    """An endless stream of host-local batches with a position that can be set."""

    def __next__(self) -> Batch:
        """The next batch of this host's rows, as NumPy arrays."""

    def get_state(self) -> dict[str, int]:
        """Position of the next batch, equal on all hosts."""

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a position."""


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
      evaluate: (state, step) -> metrics, or None.
      evaluate_every_steps: steps between evaluations; the last step always has one.
      flops_per_sample: model FLOPs of forward and backward for one example.
    """

    config: TrainConfig
    checkpoint: CheckpointConfig
    mesh: Mesh
    abstract_state: TrainState
    init_state: Callable[[], TrainState]
    train_step: TrainStep
    stream: DataStream
    learning_rate: Callable[[int], float]
    evaluate: Callable[[TrainState, int], Mapping[str, float]] | None
    evaluate_every_steps: int
    flops_per_sample: int


def run(job: Job, *, workdir: Path) -> TrainState:
    """Trains to the last step, or until a signal asks to stop; resumes by itself.

    Args:
      job: what to do.
      workdir: run folder, claimed and locked by the caller.

    Returns:
      The state after the last finished step.

    Raises:
      TrainingDiverged: when the loss is not finite; the last good checkpoint stays.
      CheckpointError: when the newest checkpoint cannot be read.
    """
    checkpoints = Checkpoints(workdir, config=job.checkpoint)
    state = start_state(job, checkpoints)
    step = int(state.step)
    is_writer = jax.process_index() == 0
    if is_writer:
        run_folder.trim_metrics(workdir, last_step=step)
        run_folder.update_run(workdir, status="running")
        writer = MetricsWriter(workdir)
    log = IntervalLog(job, first_step=step, write=writer.write if is_writer else None)

    status = "running"
    with StopSignals() as stop, progress_bar(job, step) as bar:
        try:
            while step < job.config.num_steps and status == "running":
                wait_start = time.perf_counter()
                batch = put_batch(next(job.stream), mesh=job.mesh)
                log.add_wait(time.perf_counter() - wait_start)
                state, metrics = job.train_step(state, batch, job.learning_rate(step))
                step += 1
                # Looks at the step before this one, so the device always has work.
                log.add(step, metrics, bar=bar)

                finished = step == job.config.num_steps
                stopping = stop.requested_anywhere(step)
                if finished or step % job.evaluate_every_steps == 0:
                    log.flush()
                    log.evaluate(state, step)
                if finished or stopping or job.checkpoint.is_due(step):
                    log.flush()
                    checkpoints.save(step, state, data_position=job.stream.get_state())
                if stopping and not finished:
                    status = "stopped"
            if step == job.config.num_steps:
                status = "finished"
        except TrainingDiverged:
            status = "diverged"
            raise
        except BaseException:
            status = "failed"
            raise
        finally:
            checkpoints.close()
            if is_writer:
                writer.close()
                run_folder.update_run(workdir, status=status, step=step)
    if status == "stopped":
        logging.info(
            "stopped at step %d and saved; run the same command to go on", step
        )
    return state


def start_state(job: Job, checkpoints: Checkpoints) -> TrainState:
    """A run starts from its newest checkpoint if there is one, else from scratch."""
    restored = checkpoints.restore_newest(job.abstract_state)
    if restored is None:
        return job.init_state()
    state, data_position = restored
    job.stream.set_state(data_position)
    logging.info("resuming at step %d", int(state.step))
    return state


class IntervalLog:
    """Collects device metrics and writes their means, one step behind the device."""

    def __init__(self, job: Job, *, first_step: int, write):
        self._job = job
        self._write = write
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._last_logged = first_step
        self._started = self._interval_start = time.perf_counter()
        self._paused_seconds = self._waited_seconds = 0.0

    def add_wait(self, seconds: float) -> None:
        """Counts time that the loop stood waiting for data."""
        self._waited_seconds += seconds

    def add(self, step: int, metrics: dict[str, jax.Array], *, bar: tqdm) -> None:
        """Notes the metrics of a step that was just dispatched."""
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
            if self._pending[-1][0] % self._job.config.log_every_steps == 0:
                bar.set_postfix_str(f"loss {self.flush():.4f}")
        self._pending.append((step, metrics))
        bar.update()

    def flush(self) -> float:
        """Writes one line for the pending steps; returns their mean loss.

        Raises:
          TrainingDiverged: if a loss is not finite.
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
        losses = [float(m["loss"]) for m in fetched]
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the training loss must stay finite, got {loss} at step {step}; "
                    "lower optimizer.learning_rate or optimizer.clip_norm, or set "
                    "model.qk_norm=True, and start in a new --workdir."
                )
        return means["train/loss"]

    def evaluate(self, state: TrainState, step: int) -> None:
        """Runs the evaluators and writes their metrics; training time stands still."""
        if self._job.evaluate is None:
            return
        start = time.perf_counter()
        metrics = self._job.evaluate(state, step)
        if self._write is not None:
            samples = step * self._job.config.global_batch_size
            self._write(step, {"samples": samples, **metrics})
        self._paused_seconds += time.perf_counter() - start


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a wish to stop after the current step."""

    def __enter__(self) -> StopSignals:
        self._requested = False
        self._previous = {}
        # Only the main thread may set handlers; elsewhere (a notebook's worker) the
        # signals keep their usual meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        if self._requested:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._requested = True
        logging.warning("%s: saving and stopping", signal.Signals(number).name)

    def requested_anywhere(self, step: int) -> bool:
        """Whether any host was asked to stop; all hosts answer alike."""
        if jax.process_count() == 1:
            return self._requested
        if step % 10:  # a question to all hosts costs time
            return False
        return bool(multihost_utils.process_allgather(self._requested).any())


def progress_bar(job: Job, step: int) -> Iterator[tqdm]:
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
