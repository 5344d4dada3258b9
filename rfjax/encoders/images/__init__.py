# SPDX-License-Identifier: Apache-2.0
"""Image codecs: one file per codec, and the table of them all."""

from rfjax.encoders.images.autoencoder_kl import AutoencoderKLConfig
from rfjax.encoders.images.base import ImageCodec, ImageCodecConfig, PosteriorCodec
from rfjax.encoders.images.patch_pca import PatchPCAConfig

__all__ = ["IMAGE_CODECS", "ImageCodec", "ImageCodecConfig", "PosteriorCodec"]

# `codec.kind` of an encode config, `latent.codec` of a manifest -> the other fields.
IMAGE_CODECS: dict[str, type[ImageCodecConfig]] = {
    "patch_pca": PatchPCAConfig,
    "autoencoder_kl": AutoencoderKLConfig,
}
