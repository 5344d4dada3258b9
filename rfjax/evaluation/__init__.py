# SPDX-License-Identifier: Apache-2.0
"""Evaluates a set of parameters: losses and pictures; never imports the loop.

base        what an evaluator is
validation  the validation loss, protocol val_v1
sample      latents from noise
captions    what to sample from
curves      the losses of a run as a picture
"""

from rfjax.evaluation.base import EvaluatorConfig, Subject
from rfjax.evaluation.validation import ValidationConfig
from rfjax.types import Evaluator

__all__ = ["EVALUATORS", "Evaluator", "EvaluatorConfig", "Subject", "ValidationConfig"]

EVALUATORS: dict[str, type[EvaluatorConfig]] = {  # kind -> config
    "validation": ValidationConfig,
}
