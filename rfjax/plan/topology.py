# SPDX-License-Identifier: Apache-2.0
"""TPU chips and slices: their figures, their names, and devices to compile for.

`make_devices` gives the devices of a slice that need not be available: the TPU compiler
(package libtpu) compiles for them on any machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax

from rfjax.errors import MissingPackageError, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Published figures of one device: a chip, or a part that JAX counts separately.

    Attributes:
      peak_flops: bfloat16 FLOP/s.
      clock_hz: of the tensor core, the unit of the compiler's cycles. Derived:
        peak_flops / (MXUs * rows * columns * 2).
      hbm_bytes: memory that a program may use.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s of one torus axis, one way, over both of its links.
      dcn_bandwidth: bytes/s between slices.
      num_torus_axes: torus axes of a slice.
      cores_in_name: whether product names count cores, two per chip.
      shapes: number of chips -> slice, for names that give only a number.
      devices: devices that JAX sees per chip, which share its links.

    Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x} for peak, memory and links;
    "How to scale your model" (jax-ml.github.io/scaling-book/tpus) for link bandwidth.
    """

    peak_flops: float
    clock_hz: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    num_torus_axes: int
    cores_in_name: bool
    shapes: dict[int, str]
    devices: int = 1


_FLAT_SHAPES = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16",
    256: "16x16",
}  # fmt: skip
_CUBE_SHAPES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
    256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip

CHIPS = {
    "v5e": Chip(
        peak_flops=197e12, clock_hz=1.5e9, hbm_bytes=15.75 * 2**30,
        hbm_bandwidth=819e9, ici_bandwidth=90e9, dcn_bandwidth=3.1e9,
        num_torus_axes=2, cores_in_name=False, shapes=_FLAT_SHAPES,
    ),
    "v5p": Chip(
        peak_flops=459e12, clock_hz=1.75e9, hbm_bytes=95.74 * 2**30,
        hbm_bandwidth=2765e9, ici_bandwidth=180e9, dcn_bandwidth=6.25e9,
        num_torus_axes=3, cores_in_name=True, shapes=_CUBE_SHAPES,
    ),
    "v6e": Chip(
        peak_flops=918e12, clock_hz=1.75e9, hbm_bytes=31.25 * 2**30,
        hbm_bandwidth=1638e9, ici_bandwidth=180e9, dcn_bandwidth=12.5e9,
        num_torus_axes=2, cores_in_name=False, shapes=_FLAT_SHAPES,
    ),
    "tpu7x": Chip(
        peak_flops=2307e12 / 2, clock_hz=2.2e9, hbm_bytes=94.74 * 2**30,
        hbm_bandwidth=7380e9 / 2, ici_bandwidth=90e9, dcn_bandwidth=6.25e9,
        num_torus_axes=3, cores_in_name=True, shapes=_CUBE_SHAPES, devices=2,
    ),
}  # fmt: skip
_ALIASES = {
    "v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x",
    "v7x": "tpu7x",
}  # fmt: skip
_DEVICE_KINDS = {  # device kind of JAX -> a name in `CHIPS`
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
_EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:8x8, v5litepod-256 or v5p-128"


def chip_name_of(device_kind: str) -> str | None:
    """The name in `CHIPS` of a device kind of JAX, None if it is not there."""
    return _DEVICE_KINDS.get(device_kind)


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice, or several equal ones joined by the data-centre network.

    Attributes:
      chip_name: a name in `CHIPS`.
      shape: chips along each torus axis of one slice.
      num_slices: 1 or more.
    """

    chip_name: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """Figures of one device."""
        return CHIPS[self.chip_name]

    @property
    def num_chips(self) -> int:
        """Chips over all slices."""
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        """Devices as JAX counts them, over all slices."""
        return self.num_chips * self.chip.devices

    @property
    def slice_name(self) -> str:
        """The compiler's name of one slice, e.g. v5p:4x4x4."""
        return f"{self.chip_name}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        slices = f"{self.num_slices}*" if self.num_slices > 1 else ""
        return slices + self.slice_name


def parse_topology(name: str) -> Topology:
    """Reads v5p:4x4x4, v5p-128 (128 cores, 64 chips), v5litepod-256, 2*v5e:16x16.

    Raises:
      UserError: if the chip, or a slice of that shape, does not exist.

    Example:
      >>> slices = parse_topology("2*v5p-128")
      >>> str(slices), slices.num_chips
      ('2*v5p:4x4x4', 128)
    """
    match = re.fullmatch(
        r"(?:(\d+)\*)?(\w+?)(?::(\d+(?:x\d+)*)|-(\d+))", name.lower().strip()
    )
    chip_name = match and _ALIASES.get(match[2], match[2])
    if not match or chip_name not in CHIPS:
        raise UserError(
            f"--topology must name a chip of {', '.join(CHIPS)} and a slice, got "
            f"{name!r}; examples: {_EXAMPLES}."
        )
    chip = CHIPS[chip_name]
    num_slices = int(match[1] or 1)
    shape_text = match[3]
    if match[4]:
        chips, odd = divmod(int(match[4]), 2 if chip.cores_in_name else 1)
        shape_text = None if odd else chip.shapes.get(chips)
        if shape_text is None:
            unit = "cores" if chip.cores_in_name else "chips"
            sizes = [n * (2 if chip.cores_in_name else 1) for n in chip.shapes]
            raise UserError(
                f"--topology={name} must give a number of {unit} of {chip_name} out of "
                f"{', '.join(map(str, sizes))}; write the shape out for others, as in "
                f"{chip_name}:{list(chip.shapes.values())[-1]}."
            )
    shape = tuple(map(int, shape_text.split("x")))
    if num_slices < 1 or min(shape) < 1 or len(shape) != chip.num_torus_axes:
        raise UserError(
            f"--topology={name} must have {chip.num_torus_axes} torus axes for "
            f"{chip_name} and at least one chip on each; examples: {_EXAMPLES}."
        )
    _check_exists(name, chip_name, shape)
    return Topology(chip_name, shape, num_slices)


def _check_exists(name: str, chip_name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError for a slice that is not offered."""
    if len(shape) == 2:
        exists = "x".join(map(str, shape)) in CHIPS[chip_name].shapes.values()
        rule = f"be one of {', '.join(CHIPS[chip_name].shapes.values())}"
    else:
        small = shape in ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
        exists = small or (
            all(n % 4 == 0 for n in shape) and math.prod(shape) <= 16 * 20 * 28
        )
        rule = (
            "be 2x2x1, 2x2x2, 2x2x4, 2x4x4 or have multiples of 4, 8960 chips at most"
        )
    if not exists:
        raise UserError(f"--topology={name} must {rule}; examples: {_EXAMPLES}.")


def check_compiler() -> None:
    """Raises MissingPackageError if the TPU compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackageError(
            "needs the TPU compiler, package libtpu, which is not "
            "installed; run `pip install 'rfjax[plan]'` (no TPU is needed)."
        )


def make_devices(topology: Topology) -> list[jax.Device]:
    """Devices that can be compiled for, but not run on.

    Raises:
      MissingPackageError: if libtpu is not installed.
      UserError: if the compiler does not know the slice.
    """
    check_compiler()
    # Read when the library is loaded: there is no TPU to query or to lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    try:
        described = topologies.get_topology_desc(topology.slice_name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology={topology} is refused by the TPU compiler: {error}; "
            f"examples: {_EXAMPLES}."
        ) from error
    return list(described.devices)
