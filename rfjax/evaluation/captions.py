# SPDX-License-Identifier: Apache-2.0
"""Captions to sample from: a user's own prompts, or those stored with a data set.

Both give what training saw: bfloat16 states, padded to the data set's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data import Dataset
from rfjax.data.conditioning import join_captions
from rfjax.encoders.text import UnknownWords, make_text_encoder
from rfjax.types import Conditioning


def encode_prompts(config: Dataset, prompts: Sequence[str]) -> tuple[Conditioning, str]:
    """Encodes B prompts with the data set's own text encoders.

    Returns:
      What the model is given, and a sentence about words that an encoder does not
      know, empty if they know all.

    Raises:
      MissingPackageError: if the encoders' packages are not installed.
      UserError: if a prompt has more tokens than the data set's captions may have.
    """
    manifest = config.manifest()
    rows: list[dict[str, np.ndarray]] = [{} for _ in prompts]
    notes = []
    for encoder in manifest.text.encoders:
        encoded = make_text_encoder(encoder.kind, length=encoder.length).encode(prompts)
        unknown = UnknownWords(encoder.kind)
        unknown.add(prompts, encoded)
        notes += filter(None, [str(unknown)])
        for index, row in enumerate(rows):
            for part in ("context", "context_length", "pooled"):
                row[manifest.feature(0, encoder, part)] = getattr(encoded, part)[index]
    return _stack(config, rows), " ".join(notes)


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
