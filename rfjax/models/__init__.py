# SPDX-License-Identifier: Apache-2.0
"""The models: backbones, and the shared parts that they are made of.

base            what a backbone is, and the `Model` that everything else sees of it
backbone_config what is asked of a backbone's config
torch_format    what export needs to know of a backbone
numerics        precision, and what the backward pass keeps
layers, embeddings, attention, fused_attention      shared parts
mmdit/          the MMDiT of Stable Diffusion 3

To add a backbone, make a folder like `mmdit` and add its row below.
"""

from rfjax.models import mmdit
from rfjax.models.base import Backbone, BackboneConfig, Model
from rfjax.types import ONE_DEVICE, Layout

__all__ = [
    "BACKBONES",
    "DEFAULT_KIND",
    "Backbone",
    "BackboneConfig",
    "Model",
    "make_model",
]

BACKBONES: dict[str, Backbone] = {  # model.kind -> backbone
    "mmdit": mmdit.BACKBONE,
}
DEFAULT_KIND = "mmdit"  # of a model section that names none


def make_model(config: BackboneConfig, *, layout: Layout = ONE_DEVICE) -> Model:
    """The model of a config.

    Args:
      config: of any backbone in `BACKBONES`.
      layout: where activations live; by default they stay where they are.

    Example:
      >>> from rfjax.models.mmdit import MMDiTConfig
      >>> f"{make_model(MMDiTConfig(depth=38)).num_params:,}"
      '8,056,617,792'
    """
    (backbone,) = {row for row in BACKBONES.values() if row.config is type(config)}
    return Model(backbone, config, layout)
