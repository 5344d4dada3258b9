# SPDX-License-Identifier: Apache-2.0
"""The power laws of a scaling study: a floor plus terms that fall with scale.

Every law here is one formula with one or two inputs x_j,

    L(x) = E + sum_j c_j (x_j / centre_j)^-a_j,

so one solver fits them all. Inside the package a law is the vector
`theta = (E, log c_1.., a_1..)` about a centre (the geometric mean of the data),
where the parameters are of order one and hardly correlated; readers see the
natural parameters E, A = c centre^a, alpha.
"""

from __future__ import annotations

import dataclasses

import numpy as np


class CannotFit(ValueError):
    """The table, the law or the options do not fit together; the message says why."""


@dataclasses.dataclass(frozen=True)
class Law:
    """One form of the power law.

    Attributes:
      inputs: what the loss depends on: "size", "samples" or "flops".
      names: the natural parameters in order: floor, coefficients, exponents.
      formula: the law as printed.
      words: the law in a sentence.
      scale_coefficients: whether a coefficient is reported as the scale x0 of
        (x0 / x)^a rather than as the factor in front of x^-a.
    """

    inputs: tuple[str, ...]
    names: tuple[str, ...]
    formula: str
    words: str
    scale_coefficients: bool = False

    @property
    def num_inputs(self) -> int:
        """Number J of inputs."""
        return len(self.inputs)

    @property
    def num_parameters(self) -> int:
        """Number 1 + 2 J of parameters."""
        return len(self.names)


# Hoffmann et al. 2022 (arXiv:2203.15556), approach 3, and Henighan et al. 2020
# (arXiv:2010.14701), equation 1.1, whose irreducible term a flow-matching loss
# needs even more: much of it is the variance of the noise.
LAWS = {
    "chinchilla": Law(
        inputs=("size", "samples"),
        names=("E", "A", "B", "alpha", "beta"),
        formula="L(N, D) = E + A / N^alpha + B / D^beta",
        words="The loss falls with the size N of the model and the number D of "
        "training samples, each by its own power, to a floor E.",
    ),
    "size": Law(
        inputs=("size",),
        names=("E", "A", "alpha"),
        formula="L(N) = E + A / N^alpha",
        words="The loss falls by a power of the size N of the model to a floor E; "
        "the number of training samples is left out.",
    ),
    "samples": Law(
        inputs=("samples",),
        names=("E", "B", "beta"),
        formula="L(D) = E + B / D^beta",
        words="The loss falls by a power of the number D of training samples to a "
        "floor E; the size of the model is left out.",
    ),
    "compute": Law(
        inputs=("flops",),
        names=("E", "C0", "gamma"),
        formula="L(C) = E + (C0 / C)^gamma",
        words="Along the frontier of the best models for their cost, the loss falls "
        "by a power of the training compute C to a floor E.",
        scale_coefficients=True,
    ),
}


def get_law(name: str) -> Law:
    """Looks up a law by name.

    Raises: CannotFit, naming the known laws.
    """
    if name not in LAWS:
        raise CannotFit(f"law must be one of {', '.join(LAWS)}, got {name!r}.")
    return LAWS[name]


def unpack(
    theta: np.ndarray, num_inputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits theta [..., 1 + 2 J] into floor [...], log c [..., J], a [..., J]."""
    return theta[..., 0], theta[..., 1 : 1 + num_inputs], theta[..., 1 + num_inputs :]


def loss_terms(theta: np.ndarray, log_inputs: np.ndarray) -> np.ndarray:
    """The falling terms c_j x_j^-a_j of a law.

    Args:
      theta: [R, 1 + 2 J] parameters of R laws.
      log_inputs: [n, J] natural logarithms of the inputs over their centre.

    Returns: [R, n, J] terms, in units of the loss.
    """
    _, log_coefficients, exponents = unpack(theta, log_inputs.shape[-1])
    return np.exp(log_coefficients[:, None, :] - exponents[:, None, :] * log_inputs)


def predict_loss(theta: np.ndarray, log_inputs: np.ndarray) -> np.ndarray:
    """L(x) [R, n] of R laws theta [R, 1 + 2 J] at n points log_inputs [n, J]."""
    return theta[:, :1] + loss_terms(theta, log_inputs).sum(-1)


def recentre(theta: np.ndarray, *, shift: np.ndarray) -> np.ndarray:
    """The same laws about another centre: log c' = log c + a (centre - centre').

    Args:
      theta: [..., 1 + 2 J] parameters about the old centre.
      shift: [J] log of the old centre minus log of the new one.
    """
    floor, log_coefficients, exponents = unpack(theta, len(shift))
    moved = log_coefficients + exponents * shift
    return np.concatenate([floor[..., None], moved, exponents], axis=-1)


def rescale(theta: np.ndarray, *, log_unit: float) -> np.ndarray:
    """The same laws with the loss in another unit: E' = E unit, c' = c unit.

    Args:
      theta: [..., 1 + 2 J] parameters with the loss in multiples of the unit.
      log_unit: log of the unit.
    """
    floor, log_coefficients, exponents = unpack(theta, (theta.shape[-1] - 1) // 2)
    floor = floor[..., None] * np.exp(log_unit)
    return np.concatenate([floor, log_coefficients + log_unit, exponents], axis=-1)


def natural_parameters(
    theta: np.ndarray, *, law: Law, log_centre: np.ndarray
) -> np.ndarray:
    """Parameters in the order of `law.names`: E, coefficients, exponents.

    Args:
      theta: [..., 1 + 2 J] parameters about the centre.
      law: says whether a coefficient is a factor A or a scale C0 = A^(1/a).
      log_centre: [J] log of the centre.

    Returns: [..., 1 + 2 J] float64.
    """
    about_one = recentre(theta, shift=log_centre)
    floor, log_coefficients, exponents = unpack(about_one, law.num_inputs)
    if law.scale_coefficients:
        log_coefficients = log_coefficients / exponents
    with np.errstate(over="ignore"):  # a resample with a huge exponent gives inf
        coefficients = np.exp(log_coefficients)
    return np.concatenate([floor[..., None], coefficients, exponents], axis=-1)
