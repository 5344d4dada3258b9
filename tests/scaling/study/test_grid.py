# SPDX-License-Identifier: Apache-2.0
"""The grid of a study: which cells it has, and what their configs say."""

import pytest

from rfjax.scaling.study.grid import GridConfig, make_cells

BASE = {
    "model": {"context_dim": 32},
    "optimizer": {"learning_rate": 4e-3},
    "train": {"global_batch_size": 8},
}


def cells_of(flops_per_sample=None, **fields):
    return make_cells(BASE, GridConfig(**fields), flops_per_sample=flops_per_sample)


def test_cells_follow_the_rules():
    cells = cells_of(
        depths=(4, 1),
        num_samples=(800, 320),
        seeds=(0, 1),
        learning_rate_exponent=-1.0,
        schedule="independent",
    )
    assert [cell.name for cell in cells][:3] == [
        "d01-n320-seed0", "d01-n800-seed0", "d01-n320-seed1",
    ]  # fmt: skip
    assert len({cell.name for cell in cells}) == 8
    rates = {c.fields["model"]["depth"]: c.fields["optimizer"] for c in cells}
    assert rates[1]["learning_rate"] == pytest.approx(8e-3)
    assert rates[4]["learning_rate"] == pytest.approx(2e-3)
    assert cells[0].fields["optimizer"]["cooldown_steps"] == 8
    assert BASE["optimizer"] == {"learning_rate": 4e-3}, "the base stays as it was"


def test_branches_leave_one_trunk_where_their_cooldowns_start():
    trunk, short, long = cells_of(
        depths=(2,), num_samples=(320, 800), cooldown_fraction=0.25
    )
    assert trunk.is_trunk
    assert trunk.fields["train"]["num_steps"] == 75
    assert trunk.fields["optimizer"]["cooldown_steps"] == 0
    assert trunk.fields["checkpoint"]["keep_steps"] == [30, 75]
    assert (short.trunk, long.trunk) == (trunk.name, trunk.name)
    assert (short.fork_step, long.fork_step) == (30, 75)
    (alone,) = cells_of(depths=(2,), num_samples=(320,))
    assert alone.trunk is None, "one length has nothing to share"


def test_equal_flops_give_deep_models_fewer_samples():
    cells = cells_of(
        lambda fields: 1e3 * fields["model"]["depth"] ** 3,
        depths=(1, 2),
        flop_budgets=(6.4e6, 2.56e7),
    )
    samples = {c.name: c.num_steps * 8 for c in cells if not c.is_trunk}
    assert list(samples.values()) == [6400, 25600, 800, 3200]
    with pytest.raises(ValueError, match="different number of steps, at least 1"):
        cells_of(lambda fields: 1e9, depths=(1,), flop_budgets=(6.4e6, 2.56e7))


def test_batch_rates_parameterisations_and_repeats():
    cells = cells_of(
        depths=(2, 8),
        num_samples=(3200,),
        repeated_depths=(2,),
        repeat_seeds=(1, 2),
        batch_size_exponent=1.0,
        learning_rates=(1e-3, 2e-3),
        parameterisations=("standard", "mup"),
        learning_rate_exponent=-1.0,
    )
    assert len(cells) == 2 * 2 * (3 + 1)
    assert cells[0].name == "d02-standard-lr0.001-n3200-seed0"
    deep = cells[-1].fields
    assert deep["train"]["global_batch_size"] == 32
    assert deep["optimizer"] == {
        "learning_rate": 2e-3, "parameterisation": "mup", "base_depth": 2,
        "cooldown_steps": 20,
    }  # fmt: skip
    standard = [c for c in cells if c.name.startswith("d08-standard-lr0.002")]
    assert standard[0].fields["optimizer"]["learning_rate"] == 5e-4
    assert cells[-1].num_steps == 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": ()}, r"grid\.depths must hold at least one value"),
        ({"num_samples": (5, 5)}, r"grid\.num_samples must hold different values"),
        ({"num_samples": ()}, r"must have one of grid\.num_samples and grid\.flop_b"),
        ({"flop_budgets": (1e9,)}, r"must have one of grid\.num_samples and"),
        ({"depths": (0, 1)}, r"grid\.depths must be at least 1, got 0"),
        ({"repeated_depths": (7,)}, r"repeated_depths must be among grid\.depths"),
        ({"repeat_seeds": (0,)}, r"repeat_seeds must differ from grid\.seeds"),
        ({"schedule": "cosine"}, r"grid\.schedule must be one of branched, indepen"),
        ({"cooldown_fraction": 1.0}, r"grid\.cooldown_fraction must be in \[0, 1\)"),
        ({"reference_depth": 0}, r"grid\.reference_depth must be at least 1"),
    ],
)
def test_wrong_grids_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GridConfig(**({"depths": (1, 2), "num_samples": (10,)} | fields))
