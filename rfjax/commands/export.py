# SPDX-License-Identifier: Apache-2.0
"""PyTorch weights of a run."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rfjax.commands.flags import RunData, Step, TorchLayout, Weights
from rfjax.export.card import UNKNOWN_LICENCE
from rfjax.export.save import ExportReport, export_run
from rfjax.export.tensor_file import DTYPES
from rfjax.value_types import LocalPath, OneOf, Text, checked


@checked
def export(
    workdir: LocalPath,
    *,
    out: LocalPath,
    layout: TorchLayout = "diffusers",
    weights: Weights = "ema",
    dtype: Annotated[str, OneOf(DTYPES)] = "float32",
    step: Step = None,
    pipeline: LocalPath | None = None,
    data: RunData = None,
    licence: Annotated[Text, Parameter(name="--license")] = UNKNOWN_LICENCE,
) -> ExportReport:
    """Writes the weights of a checkpoint as PyTorch files with a model card.

    Args:
      workdir: run folder.
      out: folder to write; must be new or empty.
      layout: diffusers, or sd3 (Stability's single file).
      weights: ema or raw.
      dtype: float32, bfloat16 or float16, of every tensor.
      step: checkpoint to read; the newest if absent.
      pipeline: folder whose vae, text_encoder* and tokenizer* to add, so that `out` is
        a whole pipeline; for diffusers only.
      data: folder of the data set, if it was moved; it gives the codec.
      licence: of the weights, for the model card: an identifier of the Hugging Face
        Hub, such as apache-2.0.

    Raises:
      UserError: an unknown choice, a folder that is not empty, or weights or a pipeline
        that do not fit; nothing is left behind.
      MissingFileError: `workdir` is not a run folder, or `pipeline` has no vae.

    Example:
      rfjax export --workdir=runs/emoji --out=export/emoji
    """
    return export_run(
        workdir,
        out=out,
        layout=layout,
        weights=weights,
        dtype=dtype,
        step=step,
        pipeline=pipeline,
        data=data,
        licence=licence,
    )
