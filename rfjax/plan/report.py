# SPDX-License-Identifier: Apache-2.0
"""A plan as text, JSON and a picture."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.plan.collectives import Collective
from rfjax.plan.estimate import Estimate
from rfjax.plan.topology import Topology

NOTE = "compiler-estimated, not measured, +-10 %"
# The compiler may pad, and repeats small products on every device.
FLOPS_TOLERANCE = 0.05
# The fields of a plan that configs/plans keeps.
HEADLINE = (
    "note", "topology", "mesh", "num_params", "global_batch_size",
    "share_of_peak_hidden", "share_of_peak_exposed", "step_seconds_hidden",
    "step_seconds_exposed", "hbm_bytes", "hbm_headroom", "flops_seen_ratio",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the TPU compiler says about one config on one topology.

    Attributes:
      topology: chips and slices.
      mesh: mesh axis -> size.
      num_params: parameters of the model.
      per_chip_batch_size: examples per device.
      model_flops: FLOPs per device and step, forward and backward, without
        recomputation.
      expected_flops: FLOPs per device and step as traced, recomputation included.
      estimate: the step time and its parts.
      collectives: everything sent in a step.
      argument_bytes: train state and batch, bytes per device.
      temporary_bytes: activations and scratch, bytes per device.
      num_images: training budget in images.
      global_batch_size: examples per step.
      compile_seconds: time that compilation took on this machine.
    """

    topology: Topology
    mesh: dict[str, int]
    num_params: int
    per_chip_batch_size: float
    model_flops: float
    expected_flops: float
    estimate: Estimate
    collectives: tuple[Collective, ...]
    argument_bytes: int
    temporary_bytes: int
    num_images: int
    global_batch_size: int
    compile_seconds: float

    @property
    def hbm_bytes(self) -> int:
        """Peak memory use, bytes per device."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def headroom(self) -> float:
        """Share of the memory of a device that stays free."""
        return 1 - self.hbm_bytes / self.topology.chip.hbm_bytes

    @property
    def roofline_seconds(self) -> float:
        """A lower bound: a step at peak FLOP/s, or the state at full memory bandwidth.

        Every step reads and writes parameters, moments and average once.
        """
        chip = self.topology.chip
        return max(
            self.model_flops / chip.peak_flops,
            2 * self.argument_bytes / chip.hbm_bandwidth,
        )

    def share_of_peak(self, seconds: float) -> float:
        """Model FLOPs / (seconds * peak)."""
        return self.model_flops / (seconds * self.topology.chip.peak_flops)

    @property
    def flops_seen_ratio(self) -> float:
        """FLOPs found in the program over FLOPs expected; near 1 if read right."""
        return self.estimate.flops / self.expected_flops

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the plan or booking chips."""
        found = []
        if abs(self.flops_seen_ratio - 1) > FLOPS_TOLERANCE:
            found.append(
                f"the program does {self.flops_seen_ratio:.3f} of the expected FLOPs: "
                "a trip count or a kernel may be misread, do not trust the time."
            )
        padded = [c for c in self.collectives if c.from_padding]
        if padded:
            found.append(
                f"{sum(c.count for c in padded)} all-gathers were lowered to "
                "all-reduces over zero-padded copies, which send "
                f"{sum(c.moved_bytes for c in padded) / 1e9:.2f} GB per chip and step: "
                "choose mesh.fsdp so that shards have a multiple of 8 rows."
            )
        if self.headroom < 0.1:
            found.append(
                f"only {self.headroom:.0%} of HBM stays free: lower "
                "train.global_batch_size or keep less (model.remat)."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in seconds, sizes in bytes per device."""
        hidden = self.estimate.hidden_seconds
        exposed = self.estimate.exposed_seconds
        num_steps = self.num_images / self.global_batch_size
        return {
            "note": NOTE,
            "topology": str(self.topology),
            "num_chips": self.topology.num_chips,
            "num_devices": self.topology.num_devices,
            "mesh": self.mesh,
            "num_params": self.num_params,
            "per_chip_batch_size": self.per_chip_batch_size,
            "global_batch_size": self.global_batch_size,
            "share_of_peak_hidden": self.share_of_peak(hidden),
            "share_of_peak_exposed": self.share_of_peak(exposed),
            "share_of_peak_compiler": self.share_of_peak(
                self.estimate.compiler_seconds
            ),
            "step_seconds_hidden": hidden,
            "step_seconds_exposed": exposed,
            "step_seconds_roofline": self.roofline_seconds,
            "images_per_second_hidden": self.global_batch_size / hidden,
            "images_per_second_exposed": self.global_batch_size / exposed,
            "num_images": self.num_images,
            "days_hidden": num_steps * hidden / 86400,
            "days_exposed": num_steps * exposed / 86400,
            "chip_hours_exposed": num_steps * exposed / 3600 * self.topology.num_chips,
            "model_flops_per_chip": self.model_flops,
            "flops_seen_per_chip": self.estimate.flops,
            "flops_expected_per_chip": self.expected_flops,
            "flops_seen_ratio": self.flops_seen_ratio,
            "hbm_bytes": self.hbm_bytes,
            "hbm_argument_bytes": self.argument_bytes,
            "hbm_temporary_bytes": self.temporary_bytes,
            "hbm_headroom": self.headroom,
            "classes": [dataclasses.asdict(c) for c in self.estimate.classes],
            "collectives": [
                {"kind": kind, "axes": axes, **values}
                for (kind, axes), values in self.collectives_by_axis().items()
            ],
            "compile_seconds": self.compile_seconds,
            "warnings": self.warnings(),
        }

    def collectives_by_axis(self) -> dict[tuple[str, str], dict[str, float]]:
        """(kind, axes) -> bytes per device and step, blocking and hidden, and runs."""
        table: dict = collections.defaultdict(
            lambda: {"count": 0, "waiting_bytes": 0.0, "hidden_bytes": 0.0, "padded": 0}
        )
        for collective in self.collectives:
            entry = table[collective.kind, collective.axes]
            entry["count"] += collective.count
            side = "hidden_bytes" if collective.is_async else "waiting_bytes"
            entry[side] += collective.moved_bytes
            entry["padded"] += collective.count * collective.from_padding
        return dict(sorted(table.items()))

    def __str__(self) -> str:
        return describe(self)


def describe(plan: Plan) -> str:
    """The plan as a table for the console."""
    values, chip = plan.to_json(), plan.topology.chip
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.topology}, {_count(plan.topology)}, mesh {mesh}: {NOTE}",
        f"model        {plan.num_params:,} parameters, "
        f"batch {plan.global_batch_size:,} ({plan.per_chip_batch_size:g} per chip)",
        f"HBM per chip {plan.hbm_bytes / 1e9:.1f} of {chip.hbm_bytes / 1e9:.1f} GB: "
        f"{plan.argument_bytes / 1e9:.1f} state and batch, "
        f"{plan.temporary_bytes / 1e9:.1f} temporary; {plan.headroom:.0%} free",
        "",
        f"{'class':<12} {'runs':>7} {'compiler ms':>12} {'limit ms':>9} "
        f"{'formula ms':>11}",
    ]
    for part in plan.estimate.classes:
        lines.append(
            f"{part.op_class:<12} {part.count:>7,} "
            f"{part.compiler_seconds * 1e3:>12.1f} {part.limit_seconds * 1e3:>9.1f} "
            f"{part.seconds * 1e3:>11.1f}"
        )
    lines += [
        "",
        f"{'collective':<20} {'axes':<14} {'runs':>6} {'blocks, GB':>10} "
        f"{'overlapped, GB':>15}",
    ]
    for (kind, axes), entry in plan.collectives_by_axis().items():
        lines.append(
            f"{kind:<20} {axes:<14} {entry['count']:>6,} "
            f"{entry['waiting_bytes'] / 1e9:>10.2f} "
            f"{entry['hidden_bytes'] / 1e9:>15.2f}"
        )
    lines += [
        "",
        f"step         {values['step_seconds_hidden'] * 1e3:.0f} ms with collectives "
        f"hidden, {values['step_seconds_exposed'] * 1e3:.0f} ms with them exposed "
        f"(roofline {plan.roofline_seconds * 1e3:.0f} ms)",
        f"of peak      {values['share_of_peak_hidden']:.1%} hidden, "
        f"{values['share_of_peak_exposed']:.1%} exposed = "
        f"{plan.model_flops / 1e12:.1f} model TFLOP / (step * "
        f"{chip.peak_flops / 1e12:.0f} TFLOP/s)",
        f"FLOPs        {plan.flops_seen_ratio:.3f} of the expected, recomputation "
        "included",
        f"images/s     {values['images_per_second_hidden']:,.0f} hidden, "
        f"{values['images_per_second_exposed']:,.0f} exposed",
        f"{plan.num_images:,} images: {values['days_hidden']:.1f} to "
        f"{values['days_exposed']:.1f} days, {values['chip_hours_exposed']:,.0f} "
        "chip-hours",
    ]
    lines += [f"warning: {warning}" for warning in plan.warnings()]
    return "\n".join(lines)


def _count(topology: Topology) -> str:
    """The number of chips, and of devices where they differ."""
    chips = f"{topology.num_chips} chips"
    if topology.chip.devices == 1:
        return chips
    return (
        f"{chips} of {topology.chip.devices} devices (here a 'chip' is one of the "
        f"{topology.num_devices} devices)"
    )


def write_json(plan: Plan, path: Path | str, *, headline: bool = False) -> None:
    """Writes the plan's values; the file appears only when complete.

    Args:
      plan: what to write.
      path: file to write.
      headline: whether to write only the fields in `HEADLINE`, to four digits.
    """
    values = plan.to_json()
    if headline:
        values = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in values.items()
            if name in HEADLINE
        }
    whole_files.write_json(path, values)


def draw(plan: Plan, path: Path | str) -> None:
    """Draws time by class and memory per device; PNG, SVG or PDF by the suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    times, memory = figure.subplots(2, 1, height_ratios=(5, 1))
    parts = [c for c in plan.estimate.classes if c.seconds or c.compiler_seconds]
    rows = range(len(parts))
    for offset, field, label, colour in (
        (-0.27, "limit_seconds", "limit (peak or bandwidth)", "#b8c4ce"),
        (0.0, "seconds", "formula", "#1f6f8b"),
        (0.27, "compiler_seconds", "compiler's own estimate", "#e0a458"),
    ):
        widths = [getattr(part, field) * 1e3 for part in parts]
        bars = times.barh(
            [row + offset for row in rows], widths, height=0.25, label=label,
            color=colour,
        )  # fmt: skip
        times.bar_label(
            bars, [f"{w:.1f}" if w else "" for w in widths], padding=3, fontsize=8
        )
    times.set_yticks(list(rows), [part.op_class for part in parts])
    times.invert_yaxis()
    times.set_xlabel("ms per step (collectives: if none is hidden)")
    times.margins(x=0.1)
    times.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    values, chip = plan.to_json(), plan.topology.chip
    figure.suptitle(
        f"{plan.num_params / 1e9:.2f}B parameters on {plan.topology}, "
        f"{plan.per_chip_batch_size:g} examples per chip: "
        f"{values['share_of_peak_hidden']:.1%} of peak with collectives hidden, "
        f"{values['share_of_peak_exposed']:.1%} exposed\n{NOTE}",
        fontsize=11,
    )
    left = 0.0
    for size, label, colour in (
        (plan.argument_bytes, "state and batch", "#1f6f8b"),
        (plan.temporary_bytes, "temporary", "#e0a458"),
        (max(chip.hbm_bytes - plan.hbm_bytes, 0), "free", "#e6ebef"),
    ):
        memory.barh([0], [size / 1e9], left=left, color=colour, label=label)
        memory.text(left + size / 2e9, 0, f"{size / 1e9:.1f}", ha="center", va="center")
        left += size / 1e9
    memory.set_yticks([])
    memory.set_xlim(0, left)
    memory.set_xlabel("HBM per chip, GB")
    memory.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axes in (times, memory):
        axes.spines[["top", "right"]].set_visible(False)
    with whole_files.replacing(path) as partial:
        figure.savefig(partial, dpi=150)
