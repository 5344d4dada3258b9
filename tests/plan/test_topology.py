# SPDX-License-Identifier: Apache-2.0
"""Names of slices, and the errors for wrong ones."""

import importlib.util

import pytest

from rfjax.plan import topology
from rfjax.plan.topology import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("name", "slice_name", "num_chips"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-128", "v5p:4x4x4", 64),  # counts cores, two per chip
        ("v5litepod-256", "v5e:16x16", 256),  # counts chips
        ("v6e-64", "v6e:8x8", 64),
        ("2*v5e:16x16", "v5e:16x16", 512),
        ("V5E:2x2", "v5e:2x2", 4),
        ("tpu7x-128", "tpu7x:4x4x4", 64),  # counts cores, two per chip
        ("ironwood:2x2x1", "tpu7x:2x2x1", 4),
    ],
)
def test_compiler_and_product_names(name, slice_name, num_chips):
    parsed = parse_topology(name)
    assert parsed.slice_name == slice_name
    assert parsed.num_chips == num_chips
    assert parse_topology(str(parsed)) == parsed


def test_jax_counts_the_halves_of_some_chips():
    assert parse_topology("tpu7x:4x4x4").num_devices == 128
    assert parse_topology("2*v5p:4x4x4").num_devices == 128  # as many as chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "h100:8",
            r"must name a chip of v5e, v5p, v6e, tpu7x and a slice, got 'h100:8'",
        ),
        ("v5p", r"must name a chip .* examples: v5e:16x16, v5p:4x4x4"),
        ("v5p-100", r"number of cores of v5p out of 8, 16, .*; write the shape out"),
        ("v5p-127", r"number of cores of v5p"),
        ("v5e-100", r"number of chips of v5e out of 1, 4, 8, 16"),
        ("v5p:8x8", r"must have 3 torus axes for v5p"),
        ("v5e:4x4x4", r"must have 2 torus axes for v5e"),
        ("0*v5e:4x4", r"at least one chip on each"),
        ("v5e:32x32", r"must be one of 1x1, 2x2"),
        ("v5p:3x4x4", r"multiples of 4, 8960 chips at most"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"libtpu, which is not installed; run `pip"):
        topology.make_devices(parse_topology("v5e:2x2"))


def test_clock_follows_from_peak_and_matrix_units():
    """Peak = MXUs per chip * rows * columns * 2 * clock."""
    units = {
        "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 4 * 256**2,
    }  # fmt: skip
    for name, size in units.items():
        chip = CHIPS[name]
        assert chip.peak_flops == pytest.approx(size * 2 * chip.clock_hz, rel=5e-3)
