# SPDX-License-Identifier: Apache-2.0
"""The dry run of a sweep: its cost, and whether its optimum lies inside the grid."""

import json

import numpy as np
import pytest

from rfjax.scaling.study import budget
from rfjax.scaling.study.budget import CellCost, ForecastConfig, Pilot

LAW = {"E": 0.4, "A": 8.0, "B": 20.0, "alpha": 0.35, "beta": 0.40}


def params(depth):
    return 5e4 * depth**3


def make_cost(depth, samples, *, shared=0, is_point=True):
    per_sample = 6 * params(depth)
    return CellCost(
        name=f"d{depth}-{samples}",
        depth=depth,
        sizes={"params": params(depth)},
        samples=samples,
        flops=per_sample * samples,
        new_flops=per_sample * (samples - shared),
        is_point=is_point,
    )


def check(depths, budgets):
    costs = [make_cost(depth, 10_000) for depth in depths]
    budget.check_edges(
        costs,
        pilot=Pilot("params", LAW),
        budgets=budgets,
    )


def closed_form_best_depth(flops):
    """Hoffmann et al. 2022, equation 4, for C = 6 N D."""
    a, b = LAW["alpha"], LAW["beta"]
    size = (a * LAW["A"] / (b * LAW["B"])) ** (1 / (a + b)) * (flops / 6) ** (
        b / (a + b)
    )
    return (size / 5e4) ** (1 / 3)


def test_a_grid_must_hold_the_optimum_of_each_budget():
    flops = 1e14
    best = closed_form_best_depth(flops)
    inside = [round(best) + step for step in (-2, -1, 0, 1, 2)]
    check(inside, [flops])
    with pytest.raises(ValueError, match="add smaller depths, or raise the budget"):
        check([depth + 4 for depth in inside], [flops])
    with pytest.raises(ValueError, match="add larger depths, or lower the budget"):
        check([1, 2], [flops])
    with pytest.raises(ValueError, match=r"best depth of 1\.00e\+22 training FLOPs"):
        check(inside, [flops, 1e22])


def test_a_grid_of_samples_needs_one_budget_with_its_optimum_inside():
    def check_samples(samples):
        costs = [make_cost(depth, n) for depth in (1, 2, 3, 4, 5) for n in samples]
        budget.check_edges(
            costs,
            pilot=Pilot("params", LAW),
            budgets=(),
        )

    check_samples((30_000, 100_000, 300_000, 1_000_000, 3_000_000))
    with pytest.raises(ValueError, match="add larger depths"):
        check_samples((10**9, 10**10, 10**11))


def test_time_follows_the_nearest_measured_depth():
    cost = make_cost(4, 1000, shared=600)
    assert cost.new_flops == pytest.approx(6 * params(4) * 400)
    seconds = budget.predicted_seconds
    speeds = {1: 1e8, 3: 2e8}
    assert seconds(cost, speeds=speeds, flops_per_second=1e9) == pytest.approx(
        cost.new_flops / 2e8
    )
    assert seconds(cost, speeds={}, flops_per_second=1e9) == cost.new_flops / 1e9
    assert seconds(cost, speeds={}, flops_per_second=None) is None


def test_speeds_are_read_from_runs(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    run = {"depth": 2, "train_flops_per_sample": 100.0}
    (folder / "run.json").write_text(json.dumps(run))
    lines = [{"step": n, "perf/samples_per_second": v} for n, v in enumerate((1, 9, 8))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    assert budget.measured_speeds(tmp_path) == {2: 800.0}
    assert budget.measured_speeds(tmp_path, min_intervals=4) == {}
    assert budget.measured_speeds(tmp_path / "none") == {}


def test_the_table_adds_up():
    costs = [
        make_cost(2, 750, is_point=False),
        make_cost(2, 500, shared=375),
        make_cost(2, 1000, shared=750),
    ]
    seconds = {cost.name: 3600.0 for cost in costs}
    text = budget.describe(
        costs,
        seconds=seconds,
        forecast=ForecastConfig(price_per_hour=2.0),
        pilot=Pilot("params", LAW),
    )
    total = text.splitlines()[-1].split()
    assert total[:2] == ["2", "points"]
    assert float(total[2]) == pytest.approx(6 * params(2) * (750 + 125 + 250), rel=0.01)
    assert total[3:] == ["3.0", "h", "6.00"]
    law = 0.4 + 8 / params(2) ** 0.35 + 20 / 500**0.4
    assert f"{law:.4f}" in text
    unknown = budget.describe(
        costs, seconds=dict.fromkeys(seconds), forecast=ForecastConfig(), pilot=None
    )
    assert "set forecast.flops_per_second" in unknown
    assert "unknown without forecast.pilot" in unknown


def test_a_pilot_is_a_fit_of_size_and_samples(tmp_path):
    path = tmp_path / "fit.json"
    with pytest.raises(FileNotFoundError, match=r"forecast\.pilot .* does not exist"):
        budget.read_pilot(path)
    path.write_text(json.dumps({"law": "compute"}))
    with pytest.raises(ValueError, match="must hold a fit of the law chinchilla"):
        budget.read_pilot(path)
    values = {name: {"value": value} for name, value in LAW.items()}
    path.write_text(
        json.dumps({"law": "chinchilla", "size_measure": "params"} | values)
    )
    pilot = budget.read_pilot(path)
    sizes = np.array([1e5, 1e6])
    expected = 0.4 + 8.0 * sizes**-0.35 + 20.0 * 1e4**-0.40
    assert pilot.loss(sizes, 1e4) == pytest.approx(expected)


def test_wrong_forecasts_are_refused():
    with pytest.raises(ValueError, match=r"forecast\.price_per_hour must be positive"):
        ForecastConfig(price_per_hour=0.0)
