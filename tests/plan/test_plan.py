# SPDX-License-Identifier: Apache-2.0
"""`commands.plan`: what it refuses, and one real compilation."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rfjax import commands
from rfjax.config import from_config_dict
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.plan.traced_flops import traced_flops

ROOT = Path(__file__).parents[2]


def load(*overrides):
    fields = load_config_file(str(ROOT / "configs" / "debug.py"))
    return from_config_dict(
        apply_overrides(fields, [f"--config.{text}" for text in overrides])
    )


@pytest.mark.parametrize(
    ("overrides", "topology", "message"),
    [
        ([], "v9:2x2", r"--topology must name a chip of v5e, v5p, v6e"),
        (["mesh.fsdp=3"], "v5e:2x2", r"mesh .*fsdp=3.* needs a multiple of 3 devices"),
        (["train.global_batch_size=30"], "v5e:4x4", r"multiple of .* \* 16 \* 1 \* 1,"),
        (["model.context_dim=9"], "v5e:2x2", r"model\.context_dim must be 32"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_compiling(
    overrides, topology, message
):
    with pytest.raises(ValueError, match=message):
        commands.plan(load(*overrides), topology=topology)


def test_traced_flops_multiply_loops():
    """Three iterations of a [2, 4] x [4, 4] product, and its two in the backward."""

    def loss(kernel):
        def turn(rows, _):
            return rows @ kernel, None

        return jax.lax.scan(turn, jnp.ones((2, 4)), length=3)[0].sum()

    kernel = jnp.ones((4, 4))
    once = 2 * 2 * 4 * 4
    assert traced_flops(loss, kernel) == 3 * once
    assert traced_flops(jax.jit(jax.grad(loss)), kernel) == 9 * once


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, libtpu"
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "tpu7x:2x2x1"])
def test_a_small_config_is_compiled_for_a_real_topology(topology, tmp_path):
    """The program does the FLOPs that the traced step needs: trip counts are right."""
    config = load(
        "model.depth=4", "model.compute_dtype=bfloat16", "model.attention=fused",
        "model.remat=linear", "model.qk_norm=False", "mesh.fsdp=4",
    )  # fmt: skip
    plan = commands.plan(
        config,
        topology=topology,
        json_file=tmp_path / "plan.json",
        picture=tmp_path / "plan.png",
    )
    assert plan.flops_seen_ratio == pytest.approx(1.0, abs=0.05)
    # fused attention forward and backward: in the scanned blocks and in the last one
    kernels = next(c for c in plan.estimate.classes if c.op_class == "kernel")
    assert kernels.count == 2 * config.model.depth
    assert 0 < plan.hbm_bytes < plan.topology.chip.hbm_bytes
    assert plan.estimate.hidden_seconds < plan.estimate.exposed_seconds
    assert (tmp_path / "plan.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, libtpu"
)
def test_a_search_reports_each_option_and_resumes_from_its_file(tmp_path):
    config = load(
        "model.depth=4", "model.compute_dtype=bfloat16", "model.qk_norm=False",
        "model.attention=fused", "train.global_batch_size=32",
    )  # fmt: skip
    path, lines = tmp_path / "search.json", []

    def run():
        found = commands.plan(
            config,
            topology="v5e:2x2",
            search=True,
            limit=1,
            json_file=path,
            report=lines.append,
        )
        return found.outcomes

    first, second = run(), run()
    assert len(first) == 1
    assert second[0] == first[0]
    assert len(second) == 2
    assert all(outcome.fits for outcome in second)
    assert "1 known already" in lines[3]
