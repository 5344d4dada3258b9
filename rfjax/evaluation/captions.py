# SPDX-License-Identifier: Apache-2.0
"""Captions to sample from: a user's own prompts, or those stored with a data set.

Both give what training saw: bfloat16 states, padded to the data set's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data import Dataset
from rfjax.data.conditioning import join_captions
from rfjax.data.text_encoders import open_text_encoder
from rfjax.encoders.text import CutCaptions, UnknownWords
from rfjax.types import Conditioning


def encode_prompts(
    config: Dataset, prompts: Sequence[str]
) -> tuple[Conditioning, list[str]]:
    """Encodes B prompts with the data set's own text encoders.

    Returns:
      What the model is given, and sentences about words that an encoder does not know
      and prompts that it cuts, if there are any.

    Raises:
      MissingPackageError: the encoders' packages are not installed.
      MissingFileError: their weights are not found.
      UserError: a prompt has more tokens than the data set's captions may have, or the
        encoders found are others than the data set's.
    """
    rows, notes = prompt_features(config, prompts)
    return _stack(config, rows), notes


def prompt_features(
    config: Dataset, prompts: Sequence[str]
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """What a record of the data set would hold of each prompt, before any rounding.

    One encoder is in memory at a time.

    Returns:
      The features of each prompt, and sentences about words that encoders do not know
      and prompts that they cut.

    Raises:
      MissingPackageError: the encoders' packages are not installed.
      MissingFileError: their weights are not found.
      UserError: a prompt is too long, or the encoders found are others.
    """
    manifest = config.manifest()
    rows: list[dict[str, np.ndarray]] = [{} for _ in prompts]
    notes = []
    for encoder in manifest.text.encoders:
        made = open_text_encoder(encoder, folders=config.encoders)
        encoded = made.encode(prompts)
        for lost in (
            UnknownWords(encoder.name),
            CutCaptions(encoder.name, encoder.length),
        ):
            lost.add(prompts, encoded)
            notes += filter(None, [str(lost)])
        for index, row in enumerate(rows):
            for part in ("context", "context_length", "pooled"):
                row[manifest.feature(0, encoder, part)] = getattr(encoded, part)[index]
    return rows, notes


def stored_captions(
    config: Dataset, split: str, *, count: int
) -> tuple[list[str], list[tuple[int, int, int]], Conditioning]:
    """At most `count` captions spread over a split.

    Returns:
      The captions, (H, W, C) of the latents of each, and their stored states.
    """
    source = config.records(split)
    count = min(count, len(source))
    records = [source[len(source) * i // count] for i in range(count)]
    captions = [record["caption"].decode() for record in records]
    shapes = [record["latents"].shape for record in records]
    return captions, shapes, _stack(config, records)


def empty_caption(config: Dataset) -> Conditioning:
    """The data set's empty caption, one row: the unconditional side of guidance."""
    return _stack(config, [config.empty_caption()])


def _stack(config: Dataset, captions: Sequence[Mapping]) -> Conditioning:
    """Joins text features as the training pipeline does: padded, masked if asked."""
    joined = join_captions(captions, config.manifest())
    return Conditioning(
        context=joined["context"],
        pooled=joined["pooled"],
        context_mask=joined["context_mask"] if config.context_mask else None,
    )
