# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a traced function: a walk over its jaxpr that multiplies loop lengths.

Unlike the analytic count it includes recomputation, so a compiled program must show the
same; XLA's own count takes each loop body once and custom kernels not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from rfjax.plan.kernels import undeclared_flops


def traced_flops(function: Any, *args: Any) -> float:
    """FLOPs of all matrix products in function(*args), 2 per multiply-add.

    Kernels count by the FLOPs that they declare or that `plan.kernels` knows. Inside a
    shard_map only one shard is visible, so its FLOPs are multiplied by their number.

    Args:
      function: anything traceable, jitted or not.
      *args: pytrees of arrays or ShapeDtypeStructs.
    """
    # A jitted function is not wrapped in another: its compiler options forbid that.
    traced = function.trace if hasattr(function, "trace") else jax.jit(function).trace
    return _count(traced(*args).jaxpr.jaxpr)


def _count(jaxpr: core.Jaxpr, wanted: Sequence[bool] | None = None) -> float:
    """FLOPs that the wanted outputs (all by default) depend on."""
    if wanted is None:
        wanted = [True] * len(jaxpr.outvars)
    needed = {
        value
        for value, want in zip(jaxpr.outvars, wanted, strict=True)
        if want and isinstance(value, core.Var)
    }
    total = 0.0
    for equation in reversed(jaxpr.eqns):
        used = [value in needed for value in equation.outvars]
        # Recomputation is traced even where all its results were saved.
        if not any(used) and not equation.effects:
            continue
        needed.update(v for v in equation.invars if isinstance(v, core.Var))
        total += _count_equation(equation, used)
    return total


def _count_equation(equation: core.JaxprEqn, used: Sequence[bool]) -> float:
    """FLOPs of one equation, of which some outputs are used."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval
        depth = math.prod(left.shape[dim] for dim in contracted)
        return 2.0 * equation.outvars[0].aval.size * depth
    if name == "pallas_call":
        cost = params.get("cost_estimate")
        return float(cost.flops) if cost else _undeclared(equation)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    times, total = 1, 0.0
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":
        times = params["mesh"].size
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if isinstance(inner, core.Jaxpr):
                # The next iteration of a loop may need any of its outputs.
                passes = name != "scan" and len(inner.outvars) == len(used)
                total += times * _count(inner, used if passes else None)
    return total


def _undeclared(equation: core.JaxprEqn) -> float:
    """FLOPs of a kernel that declares none."""
    arrays = [value.aval for value in equation.invars]
    return undeclared_flops(
        equation.params["name"],
        [a.shape for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)],
    )
