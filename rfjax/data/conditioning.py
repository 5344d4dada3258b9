# SPDX-License-Identifier: Apache-2.0
"""How the stored features of a caption become context, pooled and context_mask.

A data set may have several text encoders. Their features are stored apart, and joined
when they are read, as Stable Diffusion 3 joins CLIP-L, OpenCLIP bigG and T5
(https://arxiv.org/abs/2403.03206, section 4):

  context = [ CLIP-L | bigG | 0 ]   encoders joined on channels share the first tokens
            [ T5                ]   each encoder joined on tokens has its own, below
  pooled  = [ CLIP-L | bigG ]

In training a caption may be replaced by the empty one, and each encoder may be dropped
by itself: its part of context and pooled is then zero (appendix B.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rfjax.data.manifest import EncoderSpec, Manifest, TextSpec
from rfjax.errors import UserError

# Keeps these random numbers apart from any other use of the same seed.
_CAPTION_STREAM = 0xD209


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the features of one encoder go.

    Attributes:
      encoder: whose they are.
      tokens: of the context; None if the encoder has no context.
      channels: of the context.
      pooled: of the pooled vector.
    """

    encoder: EncoderSpec
    tokens: slice | None
    channels: slice
    pooled: slice


class CaptionJoiner:
    """Joins the features that the encoders of a data set made of one caption.

    Args:
      manifest: of the data set.
    """

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        self._text = manifest.text
        self._places, self._padding = _places(manifest.text)

    def allocate(
        self, num_rows: int, *, dtype: Any = ml_dtypes.bfloat16
    ) -> dict[str, np.ndarray]:
        """Arrays for captions, with arbitrary contents.

        Returns:
          context [num_rows, T, context_dim], pooled [num_rows, pooled_dim] and
          context_mask [num_rows, T] bool.
        """
        length, context_dim = self._text.context_shape
        return {
            "context": np.empty((num_rows, length, context_dim), dtype),
            "pooled": np.empty((num_rows, self._manifest.pooled_dim), dtype),
            "context_mask": np.empty((num_rows, length), np.bool_),
        }

    def write(
        self,
        features: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        row: int,
        *,
        caption: int = 0,
        dropped: Sequence[bool] | None = None,
    ) -> None:
        """Writes one caption into a row, every element of it.

        Args:
          features: the stored ones, or an encoder's; pads have their states, or zeros
            in the layout "unpadded".
          arrays: as `allocate` returns them.
          row: of the arrays.
          caption: which of the data set's kinds of captions.
          dropped: for each encoder whether its part is zero, and masked.

        Raises:
          UserError: a context has more tokens than its encoder gives.
        """
        context, pooled = arrays["context"][row], arrays["pooled"][row]
        mask = arrays["context_mask"][row]
        mask[:] = False
        for tokens, channels in self._padding:
            _clear(context[tokens, channels])
        if dropped is None:
            dropped = (False,) * len(self._places)
        for place, is_dropped in zip(self._places, dropped, strict=True):
            if place.tokens is not None:
                part = context[place.tokens, place.channels]
                if is_dropped:
                    _clear(part)
                else:
                    length = self._write_context(features, part, place.encoder, caption)
                    mask[place.tokens][:length] = True
            if place.encoder.pooled_dim:
                name = self._manifest.feature(caption, place.encoder, "pooled")
                pooled[place.pooled] = 0 if is_dropped else features[name]

    def has_captions(self, record: Mapping[str, Any]) -> list[bool]:
        """For each kind of caption whether a record has one."""
        return [bool(record[name]) for name in ("caption", *self._text.captions[1:])]

    def _write_context(
        self,
        features: Mapping[str, Any],
        part: np.ndarray,
        encoder: EncoderSpec,
        caption: int,
    ) -> int:
        """Writes the context of one encoder; returns its tokens that are not pads."""
        name = self._manifest.feature(caption, encoder, "context")
        states, length = features[name], int(features[f"{name}_length"])
        if self._text.layout == "unpadded":
            states = states[:length]
        if len(states) > len(part):
            raise UserError(
                f"{name} must have at most {len(part)} tokens, got {len(states)}; make "
                "the data set again with `rfjax encode`."
            )
        copy_array(states, out=part[: len(states)])
        _clear(part[len(states) :])
        return length


def copy_array(values: np.ndarray, *, out: np.ndarray) -> None:
    """Copies an array into another of its shape, and of any dtype.

    As integers if it can be: for bfloat16 NumPy holds the interpreter's lock.
    """
    if values.dtype == out.dtype:
        integers = f"u{out.itemsize}"
        values, out = values.view(integers), out.view(integers)
    out[:] = values


def _clear(values: np.ndarray) -> None:
    """Sets all to zero; as bytes, which is quickest."""
    values.view(np.uint8).fill(0)


def _places(
    text: TextSpec,
) -> tuple[tuple[_Place, ...], tuple[tuple[slice, slice], ...]]:
    """The place of each encoder, and the (tokens, channels) that none of them fills."""
    _, context_dim = text.context_shape
    contexts, padding, start = {}, [], 0
    for block in text.blocks:
        tokens, channel = slice(start, start + block[0].length), 0
        for encoder in block:
            end = channel + encoder.context_dim
            contexts[encoder.name] = tokens, slice(channel, end)
            channel = end
        if channel < context_dim:
            padding.append((tokens, slice(channel, context_dim)))
        start = tokens.stop
    places, offset = [], 0
    for encoder in text.encoders:
        tokens, channels = contexts.get(encoder.name, (None, slice(0)))
        end = offset + encoder.pooled_dim
        places.append(_Place(encoder, tokens, channels, slice(offset, end)))
        offset = end
    return tuple(places), tuple(padding)


def join_captions(
    captions: Sequence[Mapping[str, Any]],
    manifest: Manifest,
    *,
    dtype: Any = ml_dtypes.bfloat16,
) -> dict[str, np.ndarray]:
    """Joins the features of B captions as training does, with nothing dropped.

    Args:
      captions: the features of each: stored, of the empty caption, or of a prompt.
      manifest: of the data set.
      dtype: of the result.

    Returns:
      context [B, T, context_dim], pooled [B, pooled_dim], and context_mask [B, T] bool,
      False at pads.
    """
    joiner = CaptionJoiner(manifest)
    arrays = joiner.allocate(len(captions), dtype=dtype)
    for row, features in enumerate(captions):
        joiner.write(features, arrays, row)
    return arrays


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """What one example is trained with.

    Attributes:
      is_empty: whether the empty caption replaces its own.
      caption: which of the kinds of captions it is otherwise.
      dropped: for each encoder whether its part is zero.
    """

    is_empty: bool
    caption: int
    dropped: Sequence[bool]


@dataclasses.dataclass(frozen=True)
class CaptionChoices:
    """Draws captions and dropout, a pure function of the position in the stream.

    Attributes:
      seed: of the run.
      caption_dropout: probability of the empty caption.
      encoder_dropout: probability that an encoder is dropped, each by itself.
      weights: of each kind of caption; one is drawn among those that a record has.
      num_encoders: of the data set.
    """

    seed: int
    caption_dropout: float
    encoder_dropout: float
    weights: tuple[float, ...]
    num_encoders: int

    def draw(self, position: int) -> list[float]:
        """The random numbers of a position, uniform in [0, 1)."""
        rng = np.random.default_rng((self.seed, _CAPTION_STREAM, position))
        # As many, whatever is configured; the first is as it always was.
        return rng.random(2 + self.num_encoders).tolist()

    def choose(
        self, drawn: Sequence[float], has_caption: Sequence[bool]
    ) -> CaptionChoice:
        """The choice for a position.

        Args:
          drawn: what `draw` gives for it.
          has_caption: for each kind whether the record has such a caption; without any
            the first kind is taken.
        """
        empty, kind, *encoders = drawn
        caption = 0
        if len(self.weights) > 1:
            ends = np.cumsum(np.where(has_caption, self.weights, 0.0))
            if ends[-1] > 0:
                caption = int(np.argmax(kind * ends[-1] < ends))
        return CaptionChoice(
            is_empty=empty < self.caption_dropout,
            caption=caption,
            dropped=[number < self.encoder_dropout for number in encoders],
        )


def caption_weights(text: TextSpec, weights: Sequence[float]) -> tuple[float, ...]:
    """The weight of each kind of caption; all are equal when none are given.

    Raises:
      UserError: not one for each kind, or all are zero.
    """
    kinds = text.captions or ("caption",)
    if not weights:
        return (1.0,) * len(kinds)
    if len(weights) != len(kinds) or not any(weights):
        raise UserError(
            f"data.caption_weights must be one number for each of {', '.join(kinds)}, "
            f"some of them positive, got {list(weights)}; give them in that order."
        )
    return tuple(map(float, weights))
