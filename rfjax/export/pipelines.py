# SPDX-License-Identifier: Apache-2.0
"""A whole diffusers pipeline: autoencoder and text encoders beside exported weights.

The parts are copied as they are from a folder that has them, such as a downloaded
Stable Diffusion 3; `model_index.json` then names every part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.errors import MissingFileError, UserError
from rfjax.export import data_identity, foreign_files
from rfjax.export.card import Run
from rfjax.export.local_names import without_folders

# Folder of a part -> (library, class), as StableDiffusion3Pipeline wants them.
PARTS = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
}
NEVER_USED = ("image_encoder", "feature_extractor")


def find_parts(source: Path, run: Run) -> list[str]:
    """The parts that a folder has, checked against the model they are to serve.

    Raises:
      MissingFileError: the folder or its autoencoder is missing.
      UserError: a run that the pipeline cannot sample with, pickles, or an
        autoencoder or text encoder of another size than the model's, or others than
        those that encoded its data set.
    """
    if not (source / "vae" / "config.json").is_file():
        raise MissingFileError(
            f"pipeline {source} holds no vae/config.json; give a folder with vae/ and, "
            "where wanted, text_encoder*/ and tokenizer*/."
        )
    if run.warnings:
        raise UserError(
            f"pipeline must not be given for this run: {' '.join(run.warnings)} Export "
            "the transformer alone."
        )
    parts = [part for part in PARTS if (source / part).is_dir()]
    for part in parts:
        for path in sorted((source / part).rglob("*")):
            foreign_files.refuse_by_name(path)
    _check_sizes(source, parts, run)
    _check_identity(source, parts, run)
    return parts


def _check_identity(source: Path, parts: Sequence[str], run: Run) -> None:
    """Raises unless the parts encoded the data set of the run."""
    manifest = run.manifest
    if manifest is None:
        raise UserError(
            f"pipeline {source} must be compared with the data set of the run, which "
            f"is not at {run.config['data'].get('path')}; put it back, or export "
            "without --pipeline."
        )
    vae = source / "vae"
    data_identity.check_autoencoder(manifest, _read_config(vae), folder=vae)
    encoders = {}
    for part in parts:
        if part.startswith("text_encoder"):
            tokenizer = source / part.replace("text_encoder", "tokenizer")
            path = tokenizer / "tokenizer_config.json"
            limits = whole_files.read_json(path) if path.is_file() else {}
            config = {"architectures": [PARTS[part][1]]} | _read_config(source / part)
            encoders[part] = config, limits.get("model_max_length")
    data_identity.check_text_encoders(manifest, encoders, source=source)


def _check_sizes(source: Path, parts: Sequence[str], run: Run) -> None:
    checks = [("latent_channels", ["vae"], "latent_channels")]
    clips = ["text_encoder", "text_encoder_2"]
    if set(clips) <= set(parts):
        checks.append(("projection_dim", clips, "pooled_dim"))
    if "text_encoder_3" in parts:
        checks.append(("d_model", ["text_encoder_3"], "context_dim"))
    for name, owners, field in checks:
        found = sum(_read_config(source / part).get(name, 0) for part in owners)
        needed = getattr(run.model.config, field)
        if found != needed:
            raise UserError(
                f"{name} of {' + '.join(owners)} in {source} must be model.{field} = "
                f"{needed}, got {found}; give the parts the model was trained with."
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path} must be a JSON file, got none; download it again."
        )
    return whole_files.read_json(path)


def copy_parts(
    source: Path, folder: Path, parts: Sequence[str], *, scheduler: str
) -> None:
    """Copies parts into an export and writes its model_index.json.

    Args:
      source: folder of the parts.
      folder: of the export.
      parts: those to copy.
      scheduler: class of the scheduler that the export has.
    """
    for part in parts:
        shutil.copytree(source / part, folder / part)
        for path in (folder / part).glob("*config.json"):
            _forget_folders(path)
    there = {part: PARTS[part] for part in parts} | {
        "transformer": ("diffusers", "SD3Transformer2DModel"),
        "scheduler": ("diffusers", scheduler),
    }
    absent = {part: (None, None) for part in (*PARTS, *NEVER_USED) if part not in there}
    index = {"_class_name": "StableDiffusion3Pipeline", **there, **absent}
    (folder / "model_index.json").write_text(
        json.dumps(index, indent=2) + "\n", "utf-8"
    )


def _forget_folders(path: Path) -> None:
    """Cuts where a part once lay on some machine out of a copied config."""
    config = whole_files.read_json(path)
    where = {
        name: without_folders(config[name])
        for name in ("_name_or_path", "name_or_path", "tokenizer_file")
        if name in config
    }
    if any(config[name] != value for name, value in where.items()):
        path.write_text(json.dumps(config | where, indent=2) + "\n", "utf-8")


def loading_code(parts: Sequence[str], run: Run) -> str:
    """Python that loads the pipeline and draws a picture as the run is set to.

    Parts that are absent must be named; without all text encoders the pipeline takes
    their states in place of a prompt.
    """
    sample = run.config["sample"]
    prompt = '"a fox"'
    if not set(PARTS) <= set(parts):
        prompt = "prompt_embeds=context, pooled_prompt_embeds=pooled"
        if sample["guidance_scale"] > 1:
            prompt += (
                ",\n    negative_prompt_embeds=empty_context, "
                "negative_pooled_prompt_embeds=empty_pooled"
            )
    absent = "".join(f"    {part}=None,\n" for part in PARTS if part not in parts)
    return f"""\
from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained(
    "FOLDER",
{absent})
image = pipeline(
    {prompt},
    num_inference_steps={sample["num_steps"]},
    guidance_scale={sample["guidance_scale"]},
).images[0]
image.save("picture.png")"""
