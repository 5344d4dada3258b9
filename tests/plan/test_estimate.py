# SPDX-License-Identifier: Apache-2.0
"""The formula by hand, and what a plan derives from it."""

import json

import pytest

from rfjax.plan import report
from rfjax.plan.accounting import Row
from rfjax.plan.collectives import Collective
from rfjax.plan.compile import memory_excess, remedy
from rfjax.plan.estimate import estimate
from rfjax.plan.topology import CHIPS, Topology


def row(op_class, **fields):
    values = {"cycles": 0.0, "hbm_bytes": 0.0, "flops": 0.0, **fields}
    return Row(name=op_class, source="", op_class=op_class, count=1, **values)


def gather(**fields):
    return Collective(
        **{
            "kind": "all-gather",
            "axes": "fsdp",
            "group_size": 4,
            "moved_bytes": 1.8e9,
            "count": 1,
            "is_async": False,
            "from_padding": False,
            **fields,
        }
    )


ROWS = [
    row("matmul", cycles=1.75e8, hbm_bytes=1e12, flops=4.0e13),  # 100 ms by cycles
    row("elementwise", cycles=9e9, hbm_bytes=0.85 * 2765e9 * 0.02),  # 20 ms
    row("kernel", flops=0.3 * 459e12 * 0.03, hbm_bytes=1.0),  # 30 ms
    row("collective", collective=gather()),  # 10 ms at 180 GB/s
    row("collective", collective=gather(is_async=True)),  # hidden
]


def test_formula_by_hand():
    result = estimate(ROWS, chip=CHIPS["v5p"])
    assert result.hidden_seconds == pytest.approx(0.150)
    assert result.exposed_seconds == pytest.approx(0.160)
    assert result.compiler_seconds == pytest.approx(0.1 + 9e9 / 1.75e9)
    seconds = {c.op_class: c.seconds for c in result.classes}
    assert seconds["matmul"] == pytest.approx(0.1)
    assert seconds["kernel"] == pytest.approx(0.03)
    assert seconds["copy"] == 0


def test_a_kernel_that_waits_for_memory_takes_that_long():
    bound = row("kernel", flops=1.0, hbm_bytes=0.85 * 2765e9)
    assert estimate([bound], chip=CHIPS["v5p"]).hidden_seconds == pytest.approx(1.0)


def test_collectives_between_slices_go_over_the_slower_network():
    def exposed(axes):
        sent = row("collective", collective=gather(axes=axes))
        return estimate([sent], chip=CHIPS["v5p"], num_slices=2).exposed_seconds

    assert exposed("data+fsdp") == pytest.approx(1.8e9 / 180e9)
    assert exposed("slice") == pytest.approx(1.8e9 / 6.25e9)
    assert exposed("slice+data") == exposed("slice")


@pytest.fixture
def make_plan():
    def make(**fields):
        result = estimate(ROWS, chip=CHIPS["v5p"])
        values = {
            "topology": Topology("v5p", (4, 4, 4)),
            "mesh": {"data": 4, "fsdp": 16, "tensor": 1},
            "num_params": 8_000_000_000,
            "per_chip_batch_size": 16.0,
            "model_flops": 459e12 * 0.08,
            "expected_flops": result.flops,
            "estimate": result,
            "collectives": tuple(r.collective for r in ROWS if r.collective),
            "argument_bytes": 20 * 10**9,
            "temporary_bytes": 30 * 10**9,
            "num_images": 1_024_000,
            "global_batch_size": 1024,
            "compile_seconds": 1.0,
        }
        return report.Plan(**{**values, **fields})

    return make


def test_shares_and_budget_follow_from_the_step(make_plan):
    values = make_plan().to_json()
    assert values["share_of_peak_hidden"] == pytest.approx(0.08 / 0.15)
    assert values["share_of_peak_exposed"] == pytest.approx(0.08 / 0.16)
    assert values["images_per_second_hidden"] == pytest.approx(1024 / 0.15)
    assert values["chip_hours_exposed"] == pytest.approx(1000 * 0.16 / 3600 * 64)
    assert values["hbm_bytes"] == 50 * 10**9
    assert values["step_seconds_roofline"] == pytest.approx(0.08)
    assert not values["warnings"]


def test_the_text_says_that_nothing_was_measured(make_plan):
    text = str(make_plan())
    assert "compiler-estimated, not measured, +-10 %" in text
    assert "53.3% hidden, 50.0% exposed" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expected_flops": 1e13}, "of the expected FLOPs"),
        ({"temporary_bytes": 80 * 10**9}, "only 3% of HBM stays free"),
        (
            {"collectives": (gather(kind="all-reduce", from_padding=True),)},
            "1 all-gathers were lowered to all-reduces over zero-padded",
        ),
    ],
)
def test_what_spoils_a_plan_is_a_warning(make_plan, fields, message):
    assert message in str(make_plan(**fields))


def test_json_and_picture_are_written(make_plan, tmp_path):
    plan = make_plan()
    report.write_json(plan, tmp_path / "plan.json")
    report.draw(plan, tmp_path / "plan.png")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan.to_json()
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert len(list(tmp_path.iterdir())) == 2  # no unfinished file stays


def test_out_of_memory_messages_are_read():
    message = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exc"
    assert memory_excess(message) == (20.5 * 2**30, 15.75 * 2**30)
    message = "required for HLO temporaries (1.00T) exceeds available HBM (94.74G)."
    assert memory_excess(message) == (2**40, 94.74 * 2**30)
    assert memory_excess("something else") is None


def test_the_remedy_fits_the_load():
    assert "raise mesh.fsdp" in remedy(20e9, argument_bytes=15e9)
    assert "lower train.global_batch_size" in remedy(20e9, argument_bytes=5e9)
