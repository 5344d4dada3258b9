# SPDX-License-Identifier: Apache-2.0
"""Tries meshes, batches and remat policies for a config, one compilation each.

The most promising come first, each is reported as it completes, and what is known from
the results so far is used: memory grows linearly with the examples per chip, so a batch
that cannot fit is not compiled.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.errors import UserError
from rfjax.plan.compile import DoesNotFit
from rfjax.plan.report import NOTE, Plan
from rfjax.plan.topology import Topology

TILE_ROWS = 8  # a shard with fewer rows is padded, and gathered by other means
STATE_SHARE = 0.5  # of memory at most for the train state: activations need room
HEADROOM = 0.1  # of memory that the best option leaves free
MARGIN = 1.05  # by how much a prediction must exceed memory before it is believed
REMAT = ("linear", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run a config on a topology.

    Attributes:
      mesh: axis -> size.
      remat: a name in `models.numerics.REMAT_POLICIES`.
      per_chip_batch_size: examples.
    """

    mesh: dict[str, int]
    remat: str
    per_chip_batch_size: int

    def __str__(self) -> str:
        mesh = " ".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1)
        return f"{mesh or 'data=1'}, remat {self.remat}, {self.per_chip_batch_size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an option led to.

    Attributes:
      option: what was tried.
      hbm_bytes: what a chip would use.
      hbm_limit: what a chip has.
      state_bytes: of `hbm_bytes`, train state and batch.
      share_hidden: of peak with collectives hidden; None if it does not fit.
      share_exposed: of peak with collectives exposed; None if it does not fit.
      predicted: whether `hbm_bytes` was extrapolated, and nothing compiled.
      seconds: that compiling took.
    """

    option: Option
    hbm_bytes: float
    hbm_limit: float
    state_bytes: float
    share_hidden: float | None = None
    share_exposed: float | None = None
    predicted: bool = False
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it was compiled and found room."""
        return self.share_hidden is not None

    @property
    def headroom(self) -> float:
        """Share of memory left free; negative if it does not fit."""
        return 1 - self.hbm_bytes / self.hbm_limit

    def __str__(self) -> str:
        used = f"{self.hbm_bytes / 1e9:6.1f} of {self.hbm_limit / 1e9:.1f} GB"
        if self.fits:
            verdict = (
                f"{self.share_hidden:6.1%} hidden, {self.share_exposed:6.1%} exposed"
            )
        else:
            excess = (self.hbm_bytes - self.hbm_limit) / 1e9
            known = "predicted" if self.predicted else "refused by the compiler"
            verdict = f"{excess:.1f} GB too much ({known})"
        return f"{self.option!s:<44} {used}  {verdict}"


def options(
    *,
    topology: Topology,
    width: int,
    num_heads: int,
    state_bytes: int,
    per_chip_batch_size: int,
) -> list[Option]:
    """What is worth trying, the most promising first.

    Meshes: `fsdp` as small as the train state allows (copies by `data` then need fewer
    collectives), with shards that fill tiles; `tensor` 1, and 2 where heads divide.
    Remat: keep what linear layers give, or nothing. Batches: the config's per chip,
    half and a quarter of it, and half as much again.

    Args:
      topology: the chips.
      width: of the model.
      num_heads: of the model.
      state_bytes: of the whole train state: weights, average, optimizer.
      per_chip_batch_size: examples per chip as the config has it.
    """
    slices = topology.num_slices
    devices = topology.num_devices // slices
    room = STATE_SHARE * topology.chip.hbm_bytes
    meshes = []
    for tensor in (1, 2):
        if num_heads % tensor or devices % tensor:
            continue
        shards = [
            fsdp
            for fsdp in range(1, devices // tensor + 1)
            if devices % (fsdp * tensor) == 0
            and width % (fsdp * TILE_ROWS) == 0
            and state_bytes / (fsdp * tensor) < room
        ]
        for fsdp in shards[: 3 if tensor == 1 else 1]:
            mesh = {"data": devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
            meshes.append({"slice": slices, **mesh} if slices > 1 else mesh)
    base = per_chip_batch_size
    batches = sorted({max(1, base * n // 4) for n in (1, 2, 4, 6)}, reverse=True)
    found = [
        Option(mesh=mesh, remat=remat, per_chip_batch_size=batch)
        for mesh in meshes
        for remat in REMAT
        for batch in batches
    ]
    # First the config's own batch on every mesh, then smaller and larger ones.
    return sorted(
        found,
        key=lambda o: (
            REMAT.index(o.remat) + abs(batches.index(o.per_chip_batch_size) - 1)
        ),
    )


def search(
    candidates: Sequence[Option],
    plan: Callable[[Option], Plan],
    *,
    limit: int = 0,
    done: Iterable[Outcome] = (),
    report: Callable[[str], None] = print,
    save: Callable[[list[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Plans one candidate after the other.

    Args:
      candidates: in the order to try.
      plan: compiles one; raises `DoesNotFit` if memory is exceeded.
      limit: compilations at most; 0: no limit.
      done: outcomes of an earlier search, which are not tried again.
      report: receives each outcome at once, with progress.
      save: given all outcomes so far after each.

    Returns:
      The outcomes, in the order of the candidates.
    """
    known = {str(outcome.option): outcome for outcome in done}
    start, compiled = time.monotonic(), 0
    for number, option in enumerate(candidates, start=1):
        outcome = known.get(str(option))
        if outcome is None:
            outcome = predict(option, known.values())
        if outcome is None:
            if limit and compiled >= limit:
                report(f"stopped after {limit} compilations, as --limit says")
                break
            outcome = _try(option, plan)
            compiled += 1
        known[str(option)] = outcome
        save(list(known.values()))
        report(
            f"{number}/{len(candidates)} {outcome}"
            + _progress(time.monotonic() - start, compiled, len(candidates) - number)
        )
    order = [str(option) for option in candidates]
    return [known[key] for key in order if key in known]


def predict(option: Option, known: Iterable[Outcome]) -> Outcome | None:
    """An outcome from that of another batch size, if it surely exceeds memory."""
    for other in known:
        if (other.option.mesh, other.option.remat) != (option.mesh, option.remat):
            continue
        growth = option.per_chip_batch_size / other.option.per_chip_batch_size
        activations = other.hbm_bytes - other.state_bytes
        needed = other.state_bytes + activations * growth
        if growth > 1 and needed > MARGIN * other.hbm_limit:
            return Outcome(
                option=option,
                hbm_bytes=needed,
                hbm_limit=other.hbm_limit,
                state_bytes=other.state_bytes,
                predicted=True,
            )
    return None


def best(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The fastest with collectives exposed that leaves `HEADROOM` free, or None."""
    roomy = [o for o in outcomes if o.fits and o.headroom >= HEADROOM]
    return max(roomy, key=lambda outcome: outcome.share_exposed, default=None)


def frontier(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that no other beats in both memory and share of peak, least memory first.

    Both shares count: one that is best with collectives hidden stays as well.
    """
    fitting = [outcome for outcome in outcomes if outcome.fits]

    def beaten(outcome: Outcome) -> bool:
        """Whether another outcome is at least as good in all respects."""
        return any(
            other is not outcome
            and other.hbm_bytes <= outcome.hbm_bytes
            and other.share_exposed >= outcome.share_exposed
            and other.share_hidden >= outcome.share_hidden
            for other in fitting
        )

    kept = [outcome for outcome in fitting if not beaten(outcome)]
    return sorted(kept, key=lambda outcome: outcome.hbm_bytes)


def describe(outcomes: Sequence[Outcome]) -> str:
    """The frontier as a table, the best marked, and what did not fit."""
    chosen = best(outcomes)
    lines = [f"frontier of share of peak against memory; {NOTE}"]
    lines += [
        f"{'best' if outcome is chosen else '':<5}{outcome}"
        for outcome in frontier(outcomes)
    ]
    if chosen is None:
        lines.append(
            f"nothing leaves {HEADROOM:.0%} of memory free: take a larger slice, a "
            "smaller train.global_batch_size or more train.micro_batches."
        )
    else:
        flags = [f"--config.mesh.{axis}={n}" for axis, n in chosen.option.mesh.items()]
        batch = chosen.option.per_chip_batch_size
        lines += [
            "",
            f"best: {batch} examples per chip by {' '.join(flags)} "
            f"--config.model.remat={chosen.option.remat}",
        ]
    lines += [f"no fit: {outcome}" for outcome in outcomes if not outcome.fits]
    return "\n".join(lines)


def write_json(outcomes: Sequence[Outcome], path: Path | str, *, key: str) -> None:
    """Writes the outcomes; the file appears only when complete.

    Args:
      outcomes: in any order.
      path: file to write.
      key: names what was searched; `read_json` takes no other's outcomes.
    """
    chosen, kept = best(outcomes), frontier(outcomes)
    rows = [
        dataclasses.asdict(outcome)
        | {
            "fits": outcome.fits,
            "excess_bytes": max(0.0, outcome.hbm_bytes - outcome.hbm_limit),
            "on_frontier": outcome in kept,
            "best": outcome is chosen,
        }
        for outcome in outcomes
    ]
    whole_files.write_json(path, {"note": NOTE, "key": key, "outcomes": rows})


def read_json(path: Path | str, *, key: str) -> list[Outcome]:
    """Outcomes that an earlier search of the same key wrote; none without a file.

    Raises:
      UserError: the file is another search's, or no search's at all.
    """
    if not Path(path).is_file():
        return []
    try:
        values: dict[str, Any] = json.loads(Path(path).read_bytes())
        is_same = values["key"] == key
    except (ValueError, KeyError, TypeError):
        is_same = False
    if not is_same:
        raise UserError(
            f"{path} must hold the outcomes of a search of the same model and "
            "topology, to be continued, and does not; name another file."
        )
    fields = {field.name for field in dataclasses.fields(Outcome)} - {"option"}
    return [
        Outcome(
            option=Option(**row["option"]),
            **{name: value for name, value in row.items() if name in fields},
        )
        for row in values["outcomes"]
    ]


def _try(option: Option, plan: Callable[[Option], Plan]) -> Outcome:
    start = time.monotonic()
    try:
        planned = plan(option)
    except DoesNotFit as error:
        return Outcome(
            option=option,
            hbm_bytes=error.used_bytes,
            hbm_limit=error.limit_bytes,
            state_bytes=error.argument_bytes,
            seconds=time.monotonic() - start,
        )
    found = planned.estimate
    return Outcome(
        option=option,
        hbm_bytes=planned.hbm_bytes,
        hbm_limit=planned.topology.chip.hbm_bytes,
        state_bytes=planned.argument_bytes,
        share_hidden=planned.share_of_peak(found.hidden_seconds),
        share_exposed=planned.share_of_peak(found.exposed_seconds),
        seconds=time.monotonic() - start,
    )


def _progress(seconds: float, compiled: int, remaining: int) -> str:
    """Rate and time left at most: some of the rest may be predicted, not compiled."""
    if not compiled:
        return ""
    left = seconds / compiled * remaining / 60
    return f"  [{compiled / seconds * 60:.2f} per minute, at most {left:.0f} min left]"
