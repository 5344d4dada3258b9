# SPDX-License-Identifier: Apache-2.0
"""The contract of a text encoder: captions in, token states and a pooled vector out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class EncodedText:
    """Text states of B captions.

    Attributes:
      context: [B, T, context_dim] float32 token states, pads included.
      context_length: [B] int32, tokens that are not pads.
      pooled: [B, pooled_dim] float32.
      unknown_words: of each caption the words, as they were written, that the encoder
        does not know or takes for something else; empty if it knows all of all.
      num_tokens: [B] int32, tokens of each caption before it was cut; more than T where
        it was. None if the encoder cuts none.
    """

    context: np.ndarray
    context_length: np.ndarray
    pooled: np.ndarray
    unknown_words: Sequence[Sequence[str]] = ()
    num_tokens: np.ndarray | None = None


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen text encoder, ready to use.

    Every caption is padded to the same number of tokens T. The states of pads are kept:
    they depend on the caption alone, and a transformer that attends without a mask,
    like Stable Diffusion 3, sees them.

    Attributes:
      context_dim: width of the token states; 0 if it has none.
      pooled_dim: width of the pooled vector; 0 if it has none.
      mask: whether the encoder itself receives the padding mask.
      joined: where its states go beside those of others; see
        `rfjax.data.manifest.EncoderSpec`.
      weights: digest of its weights and tokenizer; empty if its kind says which.
    """

    context_dim: int
    pooled_dim: int
    mask: bool
    joined: str
    weights: str

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Encodes B captions, at least one; a caption's states depend on it alone.

        Raises:
          UserError: a caption has more than T tokens, unless its config lets it be cut;
            then `num_tokens` says so.
        """


@runtime_checkable
class TextEncoderConfig(Protocol):
    """A frozen dataclass: what an entry of `text_encoders` holds beside `kind`.

    A data set's manifest keeps all of it, and prompts are encoded with what that makes
    again. A field `name`, if there is one, names the encoder in the data set; otherwise
    its kind does. A field `path`, if there is one, says where its weights are: they may
    have been moved since, so another may stand in its place.

    Attributes:
      length: T, the tokens that every caption is padded to.
    """

    length: int

    def make(self) -> TextEncoder:
        """Loads the encoder; packages that it alone needs are imported here.

        Raises:
          MissingPackageError: a package or the weights are not installed.
        """
