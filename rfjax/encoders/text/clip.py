# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoders, OpenAI's CLIP-L and OpenCLIP's bigG, as in Stable Diffusion 3.

The context is the penultimate layer's states, without the final norm; the pooled vector
is the last layer's state of the token that closes the caption, normed and projected.
The context stands beside those of other CLIPs, on channels. This is what
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

# As eos_token_id in old configs: a caption ends at its highest token.
_HIGHEST_TOKEN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig(PretrainedTextConfig):
    """Fields of a text encoder of kind `clip`.

    Attributes:
      length: tokens T that every caption is padded to, counting the two that open and
        close it; CLIP was trained with 77, which is also the most that it takes.
    """

    length: Annotated[int, Bounds(3, 1024, remedy="CLIP was trained with 77")] = 77

    def make(self) -> PretrainedTextEncoder:
        """Loads tokenizer and weights.

        Raises:
          MissingPackageError: PyTorch, transformers or torchax is not installed.
          MissingFileError: there is no such folder.
          UserError: it holds another model, or a damaged one.
        """
        return PretrainedTextEncoder(self, _CLIP)


def _states(model: Any) -> Any:
    import torch

    class PenultimateAndPooled(torch.nn.Module):
        """Ids [B, T] to the penultimate states and the projected pooled vector."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Without a mask, as diffusers has it."""
            found = self.model(input_ids=ids, output_hidden_states=True)
            return found.hidden_states[-2], found.text_embeds

    return PenultimateAndPooled()


def _problem(config: Any, tokenizer: Any, length: int) -> str:
    """Positions, and the token whose state becomes the pooled vector."""
    if length > config.max_position_embeddings:
        return (
            f"text_encoders.length must be at most {config.max_position_embeddings}, "
            f"the positions of the model, got {length}; lower it"
        )
    closing = config.eos_token_id
    if closing not in (_HIGHEST_TOKEN, tokenizer.eos_token_id):
        return (
            f"eos_token_id of config.json must be the token {tokenizer.eos_token_id} "
            f"with which the tokenizer closes a caption, got {closing}; give the "
            "tokenizer that the model came with"
        )
    return ""


_CLIP = Architecture(
    kind="clip",
    model="CLIPTextModelWithProjection",
    config="CLIPTextConfig",
    model_types=("clip_text_model", "clip"),
    tokenizer="CLIPTokenizer",
    vocabulary=(("tokenizer.json",), ("vocab.json", "merges.txt")),
    facts=("hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id"),
    joined="channels",
    states=_states,
    dims=lambda config: (config.hidden_size, config.projection_dim),
    problem=_problem,
)
