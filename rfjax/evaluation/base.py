# SPDX-License-Identifier: Apache-2.0
"""What an evaluator is: it measures one set of parameters, now and then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jax.sharding import Mesh

from rfjax.data import Dataset
from rfjax.flow.formulations import Formulation
from rfjax.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated: all that an evaluator may ask about a run.

    Attributes:
      model: in the layout of the mesh.
      formulation: what it is trained as.
      mesh: where parameters and batches live.
      data: what the run reads.
    """

    model: Model
    formulation: Formulation
    mesh: Mesh
    data: Dataset


class Evaluator(Protocol):
    """A measurement that is ready to run.

    Attributes:
      name: its metrics are called NAME/..., those of the EMA weights NAME_ema/...
      every_steps: optimizer steps between evaluations; the last step always has one.
    """

    name: str
    every_steps: int

    def __call__(
        self, params: Mapping[str, Any], *, check_in: Callable[[], None] = ...
    ) -> dict[str, float]:
        """Measures one set of parameters; all processes call it together.

        Args:
          params: of the model, in the layout of the mesh.
          check_in: called between parts of the work; what it raises ends it.
        """

    def compile(self, params: Mapping[str, Any]) -> None:
        """Compiles ahead of the first call, while nothing is lost by a signal."""


class EvaluatorConfig(Protocol):
    """A row of `EVALUATORS`: a frozen dataclass of the evaluator's fields."""

    def make(self, subject: Subject) -> Evaluator:
        """Builds the evaluator; checks at once all that can be checked.

        Raises:
          UserError: it cannot be run on this subject.
        """
