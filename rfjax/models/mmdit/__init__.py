# SPDX-License-Identifier: Apache-2.0
"""The MMDiT of Stable Diffusion 3, as a backbone.

config          shape and numerics
network         the architecture; reads like the paper's figure 2
parameters      the dims and the role of every parameter
flops           its work, from the config alone
activations     what the coordinate check looks at
torch_names     its parameters in PyTorch files
torch_files     the rest of those files: positions, config.json, what they say
"""

from rfjax.models.base import Backbone
from rfjax.models.mmdit.activations import activations
from rfjax.models.mmdit.config import MMDiTConfig
from rfjax.models.mmdit.flops import forward_flops
from rfjax.models.mmdit.network import MMDiT
from rfjax.models.mmdit.parameters import PARAMETERS, STACKS
from rfjax.models.mmdit.torch_files import MMDiTFiles

__all__ = ["BACKBONE", "MMDiT", "MMDiTConfig"]

BACKBONE = Backbone(
    config=MMDiTConfig,
    network=MMDiT,
    parameters=PARAMETERS,
    forward_flops=forward_flops,
    stacks=STACKS,
    modulations="modulation",
    activations=activations,
    torch=MMDiTFiles(),
)
