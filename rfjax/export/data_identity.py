# SPDX-License-Identifier: Apache-2.0
"""Whether a pipeline's autoencoder and text encoders are those of the data set.

Parts of the right sizes load and run, and draw noise if they are others. What the data
set was encoded with is in its manifest; data that never were pictures, whose codec is
"none", can be compared with nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax.data.manifest import NO_CODEC, EncoderSpec, Manifest
from rfjax.data.text_encoders import open_text_encoder
from rfjax.encoders.images.autoencoder_kl import AutoencoderKLConfig
from rfjax.errors import MissingPackageError, UserError

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
    manifest: Manifest,
    parts: Mapping[str, tuple[Mapping[str, Any], int | None]],
    *,
    source: Path,
) -> None:
    """Compares kinds, order, sizes, lengths and weights of the text encoders.

    Args:
      manifest: of the data set of the run.
      parts: name of a text encoder in the pipeline -> (its config.json with its class,
        the tokens that its tokenizer takes at most, if known); none if it has none.
      source: folder of the pipeline.

    Raises:
      UserError: captions of the data set were encoded by something else.
      MissingPackageError: weights can be compared only with PyTorch.
    """
    if not parts or manifest.latent.codec == NO_CODEC:
        return
    left = dict(parts)
    for encoder in manifest.text.encoders:
        # Pooled vectors are joined in the order of the encoders, so the first it is.
        part = next((p for p in left if _is_kind(encoder.kind, left[p][0])), None)
        if part is None:
            there = ", ".join(c["architectures"][0] for c, _ in left.values())
            raise UserError(
                f"text encoders of the pipeline must hold {encoder.name}, a "
                f"{encoder.kind} that encoded data set {manifest.name}, got "
                f"{there or 'no others'}; {_REMEDY}"
            )
        _check_sizes(manifest, encoder, part, *left.pop(part))
        _check_weights(encoder, part, source)
    if left:
        raise UserError(
            f"{' and '.join(left)} of the pipeline must have encoded data set "
            f"{manifest.name}, got {', '.join(e.name for e in manifest.text.encoders)} "
            "in its place; take it out of the folder, or export without --pipeline."
        )


def _check_sizes(
    manifest: Manifest,
    encoder: EncoderSpec,
    part: str,
    config: Mapping[str, Any],
    num_tokens: int | None,
) -> None:
    """Raises unless a part gives states of the sizes that the data set has."""
    is_clip = _is_kind("clip", config)
    names = ("hidden_size", "projection_dim") if is_clip else ("d_model", "")
    dims = (encoder.context_dim, encoder.pooled_dim)
    for name, dim in zip(names, dims, strict=True):
        if name in config and dim not in (0, config[name]):
            raise UserError(
                f"{name} of {part} must be that of {encoder.name} in data set "
                f"{manifest.name}, {dim}, got {config[name]}; {_REMEDY}"
            )
    if num_tokens is not None and encoder.length > num_tokens:
        raise UserError(
            f"tokens of {part} must be at least those of {encoder.name} in data set "
            f"{manifest.name}, {encoder.length}, got {num_tokens}; {_REMEDY}"
        )


def _check_weights(encoder: EncoderSpec, part: str, source: Path) -> None:
    """Raises unless a part has the weights and the tokenizer of an encoder."""
    if not encoder.weights:
        return
    here = {
        "path": str(source),
        "subfolder": part,
        "tokenizer": part.replace("text_encoder", "tokenizer"),
        "device": "cpu",
    }
    fields = {**encoder.fields, **here}
    try:
        open_text_encoder(dataclasses.replace(encoder, fields=fields))
    except MissingPackageError:
        raise
    except UserError as error:
        raise UserError(f"{error} Or {_REMEDY}") from error


def _is_kind(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a kind of text encoder."""
    names: Sequence[str] = (
        *config["architectures"],
        config.get("model_type", ""),
        config.get("_name_or_path", ""),
    )
    return any(_plain(kind) in _plain(name) for name in names)


def _plain(name: str) -> str:
    """Letters and digits only: autoencoder_kl and AutoencoderKL are one name."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
