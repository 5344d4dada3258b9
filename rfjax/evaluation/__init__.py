# SPDX-License-Identifier: Apache-2.0
"""What a set of parameters is worth: losses and pictures, never the loop.

base        what an evaluator is
validation  the validation loss, protocol val_v1
sample      latents from noise
captions    what to sample from
curves      the losses of a run as a picture
"""

from rfjax.evaluation.base import Evaluator, EvaluatorConfig, Subject
from rfjax.evaluation.validation import ValidationConfig

__all__ = ["EVALUATORS", "Evaluator", "EvaluatorConfig", "Subject", "ValidationConfig"]

EVALUATORS: dict[str, type] = {  # kind -> config
    "validation": ValidationConfig,
}
