# SPDX-License-Identifier: Apache-2.0
"""T5's encoder, v1.1 of any size, as Stable Diffusion 3 uses T5-v1.1-XXL.

The context is the last layer's states after the final norm; there is no pooled vector.
In a batch the tokens follow those of the CLIPs. This is what
`StableDiffusion3Pipeline.encode_prompt` of diffusers computes, after section 4 of Esser
et al. (2024), arXiv:2403.03206.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from rfjax.encoders.text.pretrained import (
    Architecture,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from rfjax.value_types import Bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(PretrainedTextConfig):
    """Fields of a text encoder of kind `t5`.

    Attributes:
      length: tokens T that every caption is padded to, counting the one that closes it:
        77 in the paper; pipelines sample with 256 by default, and 512 at most.
    """

    length: Annotated[int, Bounds(2, 4096, remedy="choose 77, 256 or 512")] = 77

    def make(self) -> PretrainedTextEncoder:
        """Loads tokenizer and weights.

        Raises:
          MissingPackageError: PyTorch, transformers or torchax is not installed.
          MissingFileError: there is no such folder.
          UserError: it holds another model, or a damaged one.
        """
        return PretrainedTextEncoder(self, _T5)


def _states(model: Any) -> Any:
    import torch

    class LastStates(torch.nn.Module):
        """Ids [B, T] to the last states, and a pooled vector of width 0."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Without a mask, as diffusers has it."""
            states = self.model(input_ids=ids).last_hidden_state
            return states, states[:, 0, :0]

    return LastStates()


def _problem(config: Any, tokenizer: Any, length: int) -> str:
    """The tokens that close and pad a caption."""
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(config, name) != getattr(tokenizer, name):
            return (
                f"{name} of config.json must be that of the tokenizer, "
                f"{getattr(tokenizer, name)}, got {getattr(config, name)}; give the "
                "tokenizer that the model came with"
            )
    return ""


_T5 = Architecture(
    kind="t5",
    model="T5EncoderModel",
    config="T5Config",
    model_types=("t5",),
    tokenizer="T5Tokenizer",
    vocabulary=(("tokenizer.json",), ("spiece.model",)),
    facts=(
        "num_heads", "d_kv", "feed_forward_proj", "layer_norm_epsilon",
        "relative_attention_num_buckets", "relative_attention_max_distance",
    ),
    joined="tokens",
    states=_states,
    dims=lambda config: (config.d_model, 0),
    problem=_problem,
)  # fmt: skip
