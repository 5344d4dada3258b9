# SPDX-License-Identifier: Apache-2.0
"""The contract of an evaluator, which measures one set of parameters periodically."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jax.sharding import Mesh

from rfjax.data import Dataset
from rfjax.flow.formulations import Formulation
from rfjax.models import Model
from rfjax.types import Evaluator


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


class EvaluatorConfig(Protocol):
    """A row of `EVALUATORS`: a frozen dataclass of the evaluator's fields."""

    def make(self, subject: Subject) -> Evaluator:
        """Builds the evaluator; checks at once all that can be checked.

        Raises:
          UserError: it cannot be run on this subject.
        """
