# SPDX-License-Identifier: Apache-2.0
"""Notices that a run has diverged, before anything that is ruined is saved.

Losses, gradient norms and the results of evaluations are looked at when they are
fetched anyway; the state on its devices before each save. Nothing waits for it.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rfjax.errors import UserError
from rfjax.parallel.mesh import replicated
from rfjax.train.state import TrainState

# No formulation's loss is larger for a network that predicts zero, if the latents have
# mean 0 and variance 1: then it is the sum of the squared weights of its target, 2 for
# rf and at most (1 / SIGMA_DATA)^2 for EDM.
LARGEST_TRIVIAL_LOSS = 4.0

_WINDOW = 100  # losses in the running median


class TrainingDiverged(UserError):
    """A loss, gradient, evaluation or parameter is not finite, or the loss blew up.

    Attributes:
      ruined_step: of the state that the loss shows to be ruined, if it does.
    """

    exit_status = 3

    def __init__(self, message: str, *, ruined_step: int | None = None):
        super().__init__(message)
        self.ruined_step = ruined_step


class Watch:
    """Raises `TrainingDiverged` for whatever of a run is not finite or blew up.

    Attributes:
      proven_step: the newest whose state has given a good loss.
    """

    def __init__(
        self,
        *,
        max_loss_ratio: float,
        earlier_losses: Iterable[float],
        mesh: Mesh,
        bad_examples: Callable[[int | None], str | None],
        saved_step: Callable[[int | None], int | None],
    ):
        """Watches from now on.

        Args:
          max_loss_ratio: as in `TrainConfig`.
          earlier_losses: of a run that resumes, in order.
          mesh: where the state lives.
          bad_examples: (step, or None for validation) -> what is wrong with the
            examples read there, in words; None if nothing is.
          saved_step: step of a ruined state, or None -> the newest checkpoint of
            another; None if there is none.
        """
        self._max_loss_ratio = max_loss_ratio
        self._recent = collections.deque(earlier_losses, maxlen=_WINDOW)
        self._lowest_median = math.inf
        self.proven_step = -1
        self._bad_examples = bad_examples
        self._saved_step = saved_step
        self._finite_parts = jax.jit(_finite_parts, out_shardings=replicated(mesh))

    @property
    def loss_limit(self) -> float:
        """The largest loss that is no blow-up."""
        if self._recent:
            median = statistics.median(self._recent)
            self._lowest_median = min(self._lowest_median, median)
            reference = max(self._lowest_median, LARGEST_TRIVIAL_LOSS)
            return self._max_loss_ratio * reference
        return math.inf  # of the first loss, whatever the scale of the data

    def check_step(self, step: int, *, loss: float, grad_norm: float) -> None:
        """Looks at the metrics of a training step, of each one in order."""
        # The loss first: it shows whether the state before this step was good.
        if not math.isfinite(loss):
            self._fail(step, "train/loss", "stay finite", loss, read_at=step)
        if loss > (limit := self.loss_limit):
            rule = f"stay below {limit:.4g}"
            self._fail(step, "train/loss", rule, loss, read_at=step)
        if not math.isfinite(grad_norm):
            self._fail(step, "train/grad_norm", "stay finite", grad_norm, read_at=step)
        self._recent.append(loss)
        self.proven_step = step - 1

    def check_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the results of evaluators after a step."""
        limit = self.loss_limit
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._fail(step, name, "be finite", value, read_at=None)
            if name.endswith("/loss") and value > limit:
                self._fail(step, name, f"be below {limit:.4g}", value, read_at=None)

    def check_state(self, step: int, state: TrainState) -> None:
        """Looks at a state that is to be saved; all processes call it together."""
        for name, is_finite in jax.device_get(self._finite_parts(state)).items():
            if not is_finite:
                self._fail(step, name, "stay finite", math.nan, read_at=step)

    def _fail(
        self, step: int, name: str, rule: str, value: float, *, read_at: int | None
    ) -> None:
        """Raises the error, which blames the data if it is to blame."""
        bad = self._bad_examples(read_at)
        # The loss of a step is that of the state before it.
        ruined_step = step - 1 if name == "train/loss" and not bad else None
        saved = self._saved_step(ruined_step)
        newest = "nothing was saved" if saved is None else f"checkpoint {saved} is kept"
        message = f"{name} must {rule}, got {value:.4g} at step {step}"
        if bad:
            raise TrainingDiverged(
                f"{message}, because of its data: {bad}; `rfjax verify` names every "
                "such record. Make the data set again without them, and start in a new "
                f"--workdir ({newest})."
            )
        go_on = ""
        if "below" in rule and saved is not None:
            go_on = "; or raise train.max_loss_ratio to go on by the same command"
        raise TrainingDiverged(
            f"{message}; lower optimizer.learning_rate or optimizer.clip_norm, or set "
            f"model.qk_norm=True, and start in a new --workdir{go_on} ({newest}).",
            ruined_step=ruined_step,
        )


def _finite_parts(state: TrainState) -> dict[str, jax.Array]:
    """Whether every number of each part is finite, bool scalars."""

    def is_finite(tree: object) -> jax.Array:
        """Of the leaves that hold real numbers."""
        leaves = [
            x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))

    return {
        "params": is_finite(state.params),
        "ema_params": is_finite(state.ema_params),
        "opt_state": is_finite(state.opt_state),
    }
