# SPDX-License-Identifier: Apache-2.0
"""The flow: paths, timestep densities, objectives, solvers and guidance.

Knows no model, only functions (noisy latents, timesteps, conditioning) -> prediction.
Read in this order: `path` (Eqs. 2-17), `timesteps` (Eqs. 18-23), `prediction`,
`formulations` (the 61 names), `objective`, `solvers`, `guidance`. `weighting` has the
loss weights of the paper, which follow from the rest.
"""

from rfjax.flow.formulations import REGISTRY, Formulation, parse
from rfjax.flow.guidance import guided
from rfjax.flow.objective import (
    LossOutput,
    example_keys,
    loss_at_timesteps,
    loss_per_example,
)
from rfjax.flow.solvers import (
    GRIDS,
    PAPER_SETTINGS,
    SOLVERS,
    SamplerSetting,
    Solution,
    integrate,
    step_grid,
)
from rfjax.flow.timesteps import DynamicShift, resolution_shift, shift_timesteps

__all__ = [
    "GRIDS",
    "PAPER_SETTINGS",
    "REGISTRY",
    "SOLVERS",
    "DynamicShift",
    "Formulation",
    "LossOutput",
    "SamplerSetting",
    "Solution",
    "example_keys",
    "guided",
    "integrate",
    "loss_at_timesteps",
    "loss_per_example",
    "parse",
    "resolution_shift",
    "shift_timesteps",
    "step_grid",
]
