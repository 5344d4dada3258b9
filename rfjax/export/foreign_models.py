# SPDX-License-Identifier: Apache-2.0
"""Weights that are none of a backbone of ours: what they are, by names of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rfjax.errors import UserError

_CHOOSE = "choose the weights of Stable Diffusion 3 or 3.5."
_QUANTISED = (
    "quantised ones; take those in float16, bfloat16 or float32 that they were made "
    "from."
)

# What occurs in the names of tensors -> what the file is, and the remedy. The first
# that occurs counts.
KINDS = {
    r"(^|[._])lora_|\.(lokr_|hada_|oft_|dora_scale)": (
        "a LoRA, changes to a model instead of one; apply it in diffusers "
        "(pipeline.load_lora_weights, fuse_lora, unload_lora_weights, then "
        "pipeline.transformer.save_pretrained(FOLDER)) and import FOLDER."
    ),
    r"\.(absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|comfy_quant|"
    r"weight_scale_inv|weight\._(data|scale))$": _QUANTISED,
    r"(^|\.)controlnet_": f"a ControlNet; {_CHOOSE}",
    r"(^|\.)(double_blocks|single_transformer_blocks|single_blocks)\.": (
        f"a FLUX model; {_CHOOSE}"
    ),
    r"(^|\.)(joint_transformer_blocks|double_layers)\.": (
        f"an AuraFlow model; {_CHOOSE}"
    ),
    r"(^|\.)(adaln_single|t_block)\.": f"a PixArt model; {_CHOOSE}",
    r"^(model\.diffusion_model\.|unet\.)?(input_blocks|down_blocks)\.": (
        f"a U-Net, as that of Stable Diffusion 1, 2 or XL; {_CHOOSE}"
    ),
    r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid|mid_block)\.": (
        "an autoencoder; choose the file or folder of the transformer."
    ),
    r"(^|\.)(text_model|encoder\.block\.\d+\.layer)\.": (
        "a text encoder; choose the file or folder of the transformer."
    ),
}


def refuse(names: Iterable[str], *, source: Path) -> None:
    """Raises UserError if the names of tensors are those of another kind of model."""
    text = "\n".join(names)
    for pattern, what in KINDS.items():
        if re.search(pattern, text, re.MULTILINE):
            raise UserError(f"{source} must be weights of an MMDiT, got {what}")
