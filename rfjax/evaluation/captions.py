# SPDX-License-Identifier: Apache-2.0
"""Captions to sample from: a user's own prompts, or those stored with a data set.

Both give what training saw: bfloat16 states, padded to the data set's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from rfjax.data import Dataset
from rfjax.data.manifest import only_encoder
from rfjax.data.pipeline import caption_row
from rfjax.encoders.text import UnknownWords, make_text_encoder
from rfjax.types import Conditioning


def encode_prompts(config: Dataset, prompts: Sequence[str]) -> tuple[Conditioning, str]:
    """Encodes B prompts with the data set's own text encoder.

    Returns:
      What the model is given, and a sentence about words that the encoder does not
      know, empty if it knows all.

    Raises:
      MissingPackageError: if the encoder's packages are not installed.
      UserError: if a prompt has more tokens than the data set's captions may have.
    """
    encoder = only_encoder(config.manifest())
    text = make_text_encoder(encoder.kind, length=encoder.length).encode(prompts)
    unknown = UnknownWords(encoder.kind)
    unknown.add(prompts, text)
    conditioning = _stack(
        config,
        [
            {
                f"{encoder.prefix}context": text.context[row],
                f"{encoder.prefix}context_length": text.context_length[row],
                f"{encoder.prefix}pooled": text.pooled[row],
            }
            for row in range(len(prompts))
        ],
    )
    return conditioning, str(unknown)


def stored_captions(
    config: Dataset, split: str, *, count: int
) -> tuple[list[str], Conditioning]:
    """At most `count` captions spread over a split, with their stored states."""
    source = config.records(split)
    count = min(count, len(source))
    records = [source[len(source) * i // count] for i in range(count)]
    captions = [record["caption"].decode() for record in records]
    return captions, _stack(config, records)


def empty_caption(config: Dataset) -> Conditioning:
    """The data set's empty caption, one row: the unconditional side of guidance."""
    return _stack(config, [config.empty_caption()])


def _stack(config: Dataset, records: Sequence[Mapping]) -> Conditioning:
    """Stacks text features as the training pipeline does: padded, masked if asked."""
    rows = [caption_row(record, manifest=config.manifest()) for record in records]
    context, pooled, context_mask = (
        np.stack([row[name] for row in rows])
        for name in ("context", "pooled", "context_mask")
    )
    return Conditioning(
        context=context.astype(ml_dtypes.bfloat16),
        pooled=pooled.astype(ml_dtypes.bfloat16),
        context_mask=context_mask if config.context_mask else None,
    )
