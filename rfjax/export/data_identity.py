# SPDX-License-Identifier: Apache-2.0
"""Whether a pipeline's autoencoder and text encoders are those of the data set.

Parts of the right sizes load and run, and draw noise if they are others. What the data
set was encoded with is in its manifest; data that never were pictures, whose codec is
"none", can be compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax.data.manifest import NO_CODEC, EncoderSpec, Manifest
from rfjax.encoders.images.autoencoder_kl import AutoencoderKLConfig
from rfjax.errors import UserError

AUTOENCODER = "AutoencoderKL"
# diffusers' own values where a config.json has none.
_SCALING_FACTOR, _SHIFT_FACTOR = 0.18215, 0.0

_REMEDY = "give the parts the data set was encoded with, or export without --pipeline."


def check_autoencoder(
    manifest: Manifest, config: Mapping[str, Any], *, folder: Path
) -> None:
    """Compares kind, scale, shift and weights of the codec.

    Args:
      manifest: of the data set of the run.
      config: config.json of the autoencoder.
      folder: of the autoencoder.

    Raises:
      UserError: the latents of the data set are not those of this autoencoder.
      MissingPackageError: the weights are to be compared, and PyTorch or diffusers is
        not installed.
    """
    latent = manifest.latent
    if latent.codec == NO_CODEC:
        return
    kind = config.get("_class_name", AUTOENCODER)
    if _plain(latent.codec) != _plain(kind):
        raise UserError(
            f"vae of the pipeline must be the codec of data set {manifest.name}, "
            f"{latent.codec}, got {kind}; {_REMEDY}"
        )
    for field, name, default in (
        ("codec_scale", "scaling_factor", _SCALING_FACTOR),
        ("codec_shift", "shift_factor", _SHIFT_FACTOR),
    ):
        recorded, found = getattr(latent, field), config.get(name)
        found = default if found is None else found
        if recorded is None or abs(recorded - found) > 1e-6 * max(1, abs(recorded)):
            raise UserError(
                f"{name} of the pipeline's vae must be latent.{field} of data set "
                f"{manifest.name}, {recorded}, got {found}; {_REMEDY}"
            )
    if latent.codec_weights:
        codec = AutoencoderKLConfig(
            path=str(folder),
            device="cpu",
            dtype=manifest.creation["codec"]["dtype"],
        ).make()
        if codec.weights != latent.codec_weights:
            raise UserError(
                "weights of the pipeline's vae must be those of the codec of data set "
                f"{manifest.name}, {latent.codec_weights}, got {codec.weights}; "
                f"{_REMEDY}"
            )


def check_text_encoders(
    manifest: Manifest, parts: Mapping[str, tuple[Mapping[str, Any], int | None]]
) -> None:
    """Compares kind and length of the text encoders.

    Args:
      manifest: of the data set of the run.
      parts: name of a text encoder in the pipeline -> (its config.json with its class,
        the tokens that its tokenizer takes at most, if known); none if it has none.

    Raises:
      UserError: captions of the data set were encoded by something else.
    """
    if not parts or manifest.latent.codec == NO_CODEC:
        return
    for encoder in manifest.text.encoders:
        same = [part for part, (config, _) in parts.items() if _is(encoder, config)]
        if not same:
            there = ", ".join(
                config["architectures"][0] for config, _ in parts.values()
            )
            raise UserError(
                f"text encoders of the pipeline must hold {encoder.kind}, which "
                f"encoded data set {manifest.name}, got {there}; {_REMEDY}"
            )
        lengths = [parts[part][1] for part in same if parts[part][1] is not None]
        if lengths and encoder.length > max(lengths):
            raise UserError(
                f"tokens of {' and '.join(same)} must be at least those of "
                f"{encoder.name} in data set {manifest.name}, {encoder.length}, got "
                f"{max(lengths)}; {_REMEDY}"
            )


def _is(encoder: EncoderSpec, config: Mapping[str, Any]) -> bool:
    names: Sequence[str] = (
        *config["architectures"],
        config.get("model_type", ""),
        config.get("_name_or_path", ""),
    )
    return any(_plain(encoder.kind) in _plain(name) for name in names)


def _plain(name: str) -> str:
    """Letters and digits only: autoencoder_kl and AutoencoderKL are one name."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
