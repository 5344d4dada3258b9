# SPDX-License-Identifier: Apache-2.0
"""The 61 formulations the paper compares, by the names it prints.

A formulation is a path, what the network predicts, and how often each timestep is
trained:

| name                           | path           | prediction | timesteps             |
|--------------------------------|----------------|------------|-----------------------|
| `rf`                           | rectified flow | velocity   | uniform               |
| `rf/mode(s)`                   | rectified flow | velocity   | mode, Eq. 20          |
| `rf/lognorm(m,s)`              | rectified flow | velocity   | logit-normal, Eq. 19  |
| `rf/cosmap`                    | rectified flow | velocity   | CosMap, Eq. 21        |
| `eps/linear`, `v/linear`       | LDM-linear     | noise, v   | uniform on 1000 levels|
| `eps/cos`, `v/cos`             | cosine         | noise, v   | uniform               |
| `edm(P_m,P_s)`                 | EDM            | F          | uniform               |
| `edm/rf`, `edm/cos`            | rectified, cos | F          | uniform               |

Source: Esser et al. 2024, arXiv:2403.03206, section 5.1 and appendix B.3.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.errors import UserError
from rfjax.flow.path import (
    COSINE,
    EDM,
    LDM_LINEAR,
    RECTIFIED_FLOW,
    Path,
    per_example,
)
from rfjax.flow.prediction import PREDICTIONS, convert
from rfjax.flow.timesteps import (
    CosMap,
    LogitNormal,
    Mode,
    TimestepDensity,
    Uniform,
    UniformLevels,
)
from rfjax.types import Conditioning, VelocityFn

# Below this log-SNR a noise prediction says too little about the latents to be used
# (a division by a_t < 0.007), so the network is called at this level instead.
_NOISE_LOG_SNR_MIN = -10.0


@dataclasses.dataclass(frozen=True)
class Formulation:
    """A path, a prediction and a density of timesteps. Hashable; str() is its name.

    A network of this formulation is a function (input, timesteps, conditioning) ->
    prediction, like a `VelocityFn`. Its input is z_t times the input scale of the
    prediction: z_t itself for rf, eps and v, c_in z_t for EDM. Its timesteps are
    rectified, b_t / (a_t + b_t) in [0, 1], whatever the path: a monotone function of
    the discrete level, of the t of the cosine path and of EDM's c_noise = ln(sigma) / 4
    for which one embedding serves, and which compares across formulations.

    Attributes:
      name: as in the paper, e.g. "rf/lognorm(0.00,1.00)".
      path: signal and noise as functions of t.
      prediction: what the network predicts, a key of `prediction.PREDICTIONS`.
      density: how often each t of the path is trained.
    """

    name: str
    path: Path
    prediction: str
    density: TimestepDensity

    def __str__(self) -> str:
        return self.name

    def velocity_fn(self, network_fn: VelocityFn) -> VelocityFn:
        """Makes a rectified-flow velocity from a network of this formulation.

        The result takes noisy latents on the rectified path and timesteps in [0, 1], so
        solvers, guidance and validation treat all formulations alike. Where the network
        cannot be called (beyond the ends of its path, or for the noise when there is
        hardly any signal) it is called at the nearest timestep where it can be, with
        its input scaled for the original t; nothing is NaN at t = 0 or 1.

        Args:
          network_fn: (input, timesteps, conditioning) -> prediction, see the class.

        Returns:
          A `VelocityFn`; `network_fn` itself when it already predicts the velocity.
        """
        if self.path == RECTIFIED_FLOW and self.prediction == "velocity":
            return network_fn
        input_scale = PREDICTIONS[self.prediction].input_scale
        lowest, highest = self._timestep_range()

        def velocity(
            noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
        ) -> jax.Array:
            """The velocity, by way of whatever the network predicts."""
            t = per_example(timesteps, noisy_latents)
            network_input = input_scale(1 - t, t) * noisy_latents
            called_at = jnp.clip(timesteps, lowest, highest)
            prediction = network_fn(network_input, called_at, conditioning)
            b = per_example(called_at, noisy_latents)
            a = 1 - b
            return convert(
                prediction.astype(noisy_latents.dtype),
                source=self.prediction,
                destination="velocity",
                noisy_latents=network_input / input_scale(a, b),
                a=a,
                b=b,
            )

        return velocity

    def _timestep_range(self) -> tuple[float, float]:
        """Returns the first and the last timestep that the network can be called at."""
        with jax.ensure_compile_time_eval():  # also while a caller is being traced
            lowest, highest = map(float, self.path.to_rectified(jnp.array([0.0, 1.0])))
        if self.prediction == "noise":
            highest = min(highest, 1 / (1 + math.exp(_NOISE_LOG_SNR_MIN / 2)))
        return lowest, highest


def parse(name: str) -> Formulation:
    """Returns the formulation of a name.

    Besides the 61 names of the paper, any parameters in range are accepted:
    `rf/lognorm(0.25,1.00)`, `rf/mode(0.50)`, `edm(-0.40,1.00)`. A name of the paper
    means the exact value of its grid, so `rf/mode(1.29)` has s = 1.2917.

    Args:
      name: e.g. "rf/lognorm(0.00,1.00)"; str() of the result gives it back.

    Raises:
      UserError: unknown name, with the nearest valid ones, or parameters out of range.

    Example:
      >>> formulation = parse("rf/lognorm(0.00,1.00)")
      >>> formulation.prediction, formulation.density
      ('velocity', LogitNormal(mean=0.0, std=1.0))
      >>> len(REGISTRY)
      61
    """
    if name in REGISTRY:
        return REGISTRY[name]
    for pattern, make in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            try:
                return make(name, *map(float, match.groups()))
            except UserError as error:
                raise UserError(f"objective {name}: {error}") from error
    nearest = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.0)
    raise UserError(
        f"objective must be one of the {len(REGISTRY)} names of the paper, or "
        f"rf/mode(s), rf/lognorm(m,s) or edm(P_m,P_s) with numbers, got {name!r}; "
        f"the nearest are {', '.join(nearest)}."
    )


def _rectified(name: str, density: TimestepDensity) -> Formulation:
    return Formulation(name, RECTIFIED_FLOW, "velocity", density)


def _mode(name: str, scale: float) -> Formulation:
    return _rectified(name, Mode(scale))


def _lognorm(name: str, mean: float, std: float) -> Formulation:
    return _rectified(name, LogitNormal(mean, std))


def _edm(name: str, log_sigma_mean: float, log_sigma_std: float) -> Formulation:
    return Formulation(name, EDM(log_sigma_mean, log_sigma_std), "F", Uniform())


_NUMBER = r"([+-]?\d+(?:\.\d+)?)"
_FAMILIES = {
    rf"rf/mode\({_NUMBER}\)": _mode,
    rf"rf/lognorm\({_NUMBER},{_NUMBER}\)": _lognorm,
    rf"edm\({_NUMBER},{_NUMBER}\)": _edm,
}


def _paper_formulations() -> list[Formulation]:
    """Lists the 61, family by family."""
    levels = UniformLevels(LDM_LINEAR.num_levels)
    uniform = Uniform()
    return [
        Formulation("eps/linear", LDM_LINEAR, "noise", levels),
        Formulation("v/linear", LDM_LINEAR, "v", levels),
        Formulation("eps/cos", COSINE, "noise", uniform),
        Formulation("v/cos", COSINE, "v", uniform),
        _rectified("rf", uniform),
        *(
            _mode(f"rf/mode({s:.2f})", float(s))
            for s in [*np.linspace(-1, 1.75, 7), 1.0]
        ),
        *(
            _lognorm(f"rf/lognorm({m:.2f},{s:.2f})", m, s)
            for m in (-1.0, -0.5, 0.0, 0.5, 1.0)
            for s in (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)
        ),
        _rectified("rf/cosmap", CosMap()),
        *(
            _edm(f"edm({mean:.2f},{std:.2f})", mean, std)
            for mean in (-1.2, -0.6, 0.0, 0.6, 1.2)
            for std in (0.6, 1.2, 1.8)
        ),
        # EDM's c_in, c_skip, c_out depend on sigma = b / a alone, so the log-SNR of
        # another path (t / (1 - t) and tan(pi t / 2)) needs no path of its own.
        Formulation("edm/rf", RECTIFIED_FLOW, "F", uniform),
        Formulation("edm/cos", COSINE, "F", uniform),
    ]


REGISTRY = {formulation.name: formulation for formulation in _paper_formulations()}
