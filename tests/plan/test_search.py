# SPDX-License-Identifier: Apache-2.0
"""The search over meshes, batches and remat policies, with plans made up."""

import dataclasses
import types

import pytest

from rfjax.plan import search
from rfjax.plan.compile import DoesNotFit
from rfjax.plan.search import Option, Outcome
from rfjax.plan.topology import parse_topology

LIMIT = 100e9


def option(batch: int, remat: str = "linear") -> Option:
    return Option(mesh={"data": 4, "fsdp": 16}, remat=remat, per_chip_batch_size=batch)


def outcome(batch: int, gigabytes: float, hidden: float, exposed: float) -> Outcome:
    return Outcome(
        option=option(batch), hbm_bytes=gigabytes * 1e9, hbm_limit=LIMIT,
        state_bytes=10e9, share_hidden=hidden, share_exposed=exposed,
    )  # fmt: skip


def made_up_plan(chosen: Option):
    """10 GB of state, 1 GB an example with remat linear; a fifth of it with full."""
    growth = 1e9 if chosen.remat == "linear" else 0.2e9
    used = 10e9 + growth * chosen.per_chip_batch_size
    if used > LIMIT:
        raise DoesNotFit(used_bytes=used, limit_bytes=LIMIT, argument_bytes=10e9)
    return types.SimpleNamespace(
        hbm_bytes=used,
        argument_bytes=10e9,
        topology=types.SimpleNamespace(chip=types.SimpleNamespace(hbm_bytes=LIMIT)),
        estimate=types.SimpleNamespace(hidden_seconds=1.0, exposed_seconds=2.0),
        share_of_peak=lambda seconds: 0.6 / seconds,
    )


def test_options_fit_tiles_and_memory_and_heads():
    found = search.options(
        topology=parse_topology("v5p:4x4x4"), width=2432, num_heads=38,
        state_bytes=16 * 8_056_617_792, per_chip_batch_size=64,
    )  # fmt: skip
    assert {o.mesh["fsdp"] * o.mesh["tensor"] for o in found} == {4, 8, 16}
    for chosen in found:
        assert 2432 % (8 * chosen.mesh["fsdp"]) == 0
        assert 38 % chosen.mesh["tensor"] == 0
        assert chosen.mesh["data"] * chosen.mesh["fsdp"] * chosen.mesh["tensor"] == 64
    assert {o.per_chip_batch_size for o in found} == {16, 32, 64, 96}
    first = found[0]
    assert (first.per_chip_batch_size, first.remat) == (64, "linear")
    # 15 heads cannot be halved
    odd = search.options(
        topology=parse_topology("v5p:4x4x4"), width=960, num_heads=15,
        state_bytes=16 * 5 * 10**8, per_chip_batch_size=64,
    )  # fmt: skip
    assert {o.mesh["tensor"] for o in odd} == {1}


def test_several_slices_are_an_axis_of_the_mesh():
    found = search.options(
        topology=parse_topology("2*v5p:4x4x4"), width=2432, num_heads=38,
        state_bytes=16 * 8 * 10**9, per_chip_batch_size=64,
    )  # fmt: skip
    assert {o.mesh["slice"] for o in found} == {2}
    assert all(o.mesh["slice"] * o.mesh["data"] * o.mesh["fsdp"] * o.mesh["tensor"]
               == 128 for o in found)  # fmt: skip


def test_what_surely_exceeds_memory_is_not_compiled():
    """64 examples fit; 96 do not, by refusal; 192 need no compilation to know."""
    compiled, lines = [], []

    def plan(chosen):
        compiled.append(chosen.per_chip_batch_size)
        return made_up_plan(chosen)

    found = search.search(
        [option(64), option(96), option(192)], plan, report=lines.append
    )
    assert compiled == [64, 96][: len(compiled)]
    assert [o.fits for o in found] == [True, False, False]
    assert found[2].predicted
    assert found[2].hbm_bytes == pytest.approx(202e9)
    assert "102.0 GB too much (predicted)" in lines[2]
    assert "per minute" in lines[0]
    # with remat full the same batch fits: a prediction never crosses policies
    assert search.predict(option(192, "full"), found) is None


def test_a_limited_search_goes_on_where_it_stopped(tmp_path):
    candidates = [option(8), option(16), option(64)]
    path, compiled = tmp_path / "search.json", []

    def run(limit):
        def plan(chosen):
            compiled.append(chosen.per_chip_batch_size)
            return made_up_plan(chosen)

        return search.search(
            candidates, plan, limit=limit, report=lambda line: None,
            done=search.read_json(path, key="a"),
            save=lambda outcomes: search.write_json(outcomes, path, key="a"),
        )  # fmt: skip

    assert len(run(limit=2)) == 2
    assert len(run(limit=2)) == 3
    assert compiled == [8, 16, 64]
    # Hours of compilation must not be lost to another search in the same file.
    with pytest.raises(ValueError, match="outcomes of a search of the same model"):
        search.read_json(path, key="another model")


def test_frontier_and_best():
    """More memory must buy speed; the best leaves a tenth of memory free."""
    small = outcome(16, 40, 0.50, 0.40)
    wasteful = outcome(20, 60, 0.49, 0.39)
    good = outcome(64, 85, 0.65, 0.56)
    full = outcome(80, 97, 0.66, 0.57)
    misfit = dataclasses.replace(full, share_hidden=None, share_exposed=None,
                                 hbm_bytes=120e9)  # fmt: skip
    found = [full, wasteful, good, small, misfit]
    assert search.frontier(found) == [small, good, full]
    assert search.best(found) is good
    text = search.describe(found)
    assert "best: 64 examples per chip by --config.mesh.data=4" in text
    assert "20.0 GB too much (refused by the compiler)" in text
    assert search.best([misfit]) is None
    assert "take a larger slice" in search.describe([misfit])
