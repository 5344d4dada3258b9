# SPDX-License-Identifier: Apache-2.0
"""Pictures drawn by a trained run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from cyclopts import Parameter

from rfjax import checkpoint, whole_files
from rfjax.commands.flags import SHEETS, RunData, RunEncoders, Step, Weights
from rfjax.commands.job import abstract_params_on, load_trained, make_reading_mesh
from rfjax.config import Config
from rfjax.data import sheet
from rfjax.data.buckets import Aspect, nearest_bucket
from rfjax.data.manifest import Manifest
from rfjax.encoders.images import ImageCodec
from rfjax.errors import UserError
from rfjax.evaluation import captions
from rfjax.evaluation.sample import sample_latents, sample_noise
from rfjax.flow import formulations
from rfjax.flow.solvers import GRIDS, SOLVERS
from rfjax.models import make_model
from rfjax.parallel.sharding import MeshLayout
from rfjax.types import Conditioning
from rfjax.value_types import (
    LocalPath,
    NonNegativeFloat,
    OneOf,
    PositiveInt,
    Seed,
    Text,
    checked,
)


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A picture that was drawn.

    Attributes:
      path: its file.
      warnings: what its reader has to know.
    """

    path: Path
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        wrote = f"wrote {self.path}"
        return "\n".join([wrote, *(f"warning: {text}" for text in self.warnings)])


@checked
def sample(
    workdir: LocalPath,
    *,
    prompts: Annotated[Sequence[Text], Parameter(name="--prompt")] = (),
    of_data: Annotated[bool, Parameter(name="--sheet")] = False,
    out: LocalPath | None = None,
    step: Step = None,
    weights: Weights = "ema",
    seed: Seed = 0,
    num_steps: PositiveInt | None = None,
    solver: Annotated[str, OneOf(SOLVERS)] | None = None,
    grid: Annotated[str, OneOf(GRIDS)] | None = None,
    guidance_scale: NonNegativeFloat | None = None,
    aspect: Aspect | None = None,
    data: RunData = None,
    encoders: RunEncoders = (),
) -> PictureFile:
    """Draws pictures of prompts, or a sheet of seen and held-out captions.

    Args:
      workdir: run folder; its data set gives the text encoder and the codec.
      prompts: caption to draw; may be given several times.
      of_data: draw captions of the data set instead.
      out: picture to write; if absent, sample.png or sample-2.png for prompts, and
        samples/STEP.png in the run folder for a sheet.
      step: checkpoint to read; the newest if absent.
      weights: ema or raw.
      seed: of the noise.
      num_steps: solver steps; the run's number if absent.
      solver: euler, heun or adams_bashforth; the run's if absent.
      grid: of timesteps, uniform, karras or diffusers (of the exported pipeline); the
        run's if absent.
      guidance_scale: 1 is unguided; the run's if absent.
      aspect: width over height of pictures of prompts, as 1.5: the nearest of the
        data set's buckets is drawn; squares if absent. A sheet has each caption in
        the bucket of its own picture.
      data: folder of the data set, if it was moved.
      encoders: folder with the weights of text encoders and autoencoder, if they were
        moved; may be given several times.

    Raises:
      UserError: a wrong setting, a prompt that is blank or too long, or data without
        pictures.
      MissingPackageError: the text encoder's packages are not installed.

    Example:
      rfjax sample --workdir=runs/emoji --prompt="a fox" --prompt=cactus --seed=1
    """
    settings = {
        "step": step,
        "weights": weights,
        "seed": seed,
        "num_steps": num_steps,
        "solver": solver,
        "grid": grid,
        "guidance_scale": guidance_scale,
        "data": data,
        "encoders": encoders,
    }
    if of_data == bool(prompts):
        raise UserError("give either --sheet or at least one --prompt=TEXT.")
    if of_data:
        if aspect is not None:
            raise UserError(
                f"--aspect goes with --prompt=TEXT, got {aspect:g} for a --sheet; "
                "leave it out."
            )
        return PictureFile(sample_sheet(workdir, out=out, **settings))
    out = _checked_picture(out or whole_files.unused("sample.png"))
    notes: list[str] = []
    images = sample_prompts(
        workdir, prompts, aspect=aspect, warn=notes.append, **settings
    )
    picture = sheet.draw_sheet(
        [sheet.Section("", images, prompts)],
        title=Path(workdir).name,
        columns=min(len(prompts), 8),
    )
    sheet.save_picture(picture, out)
    return PictureFile(out, tuple(notes))


@checked
def sample_prompts(
    workdir: LocalPath,
    prompts: Sequence[Text],
    *,
    step: Step = None,
    weights: Weights = "ema",
    seed: Seed = 0,
    aspect: Aspect | None = None,
    data: LocalPath | None = None,
    encoders: Sequence[LocalPath] = (),
    warn: Callable[[str], None] = warnings.warn,
    **settings: Any,
) -> np.ndarray:
    """Pictures of the prompts, drawn by a trained run.

    Args:
      workdir: run folder; its data set gives the text encoder and the codec.
      prompts: one caption per picture.
      step: which checkpoint; the newest by default.
      weights: "ema" or "raw".
      seed: of the noise.
      aspect: width over height: the nearest of the data set's buckets; square if None.
      data: folder of the data set, if it was moved.
      encoders: folders with the weights of its encoders, if they were moved.
      warn: told which words a text encoder does not know and which prompts it cuts, if
        any.
      **settings: fields of `SampleConfig` that differ from the run's; None is ignored.

    Returns:
      [B, height, width, 3] uint8.

    Raises:
      MissingPackageError: if the text encoder's packages are not installed.
      UserError: if a prompt is blank or too long, or the data set has no pictures, or
        pictures of one size only.
    """
    config = _load_config(workdir, settings, data=data, encoders=encoders)
    codec = config.data.codec()
    shape = _shape_of(config.data.manifest(), aspect)
    conditioning, lost = captions.encode_prompts(config.data, prompts)
    for sentence in lost:
        warn(sentence)
    images = _draw(
        workdir,
        config,
        codec,
        conditioning,
        shapes=[shape] * len(prompts),
        step=step,
        weights=weights,
        seed=seed,
    )
    return np.stack(images)


@checked
def sample_sheet(
    workdir: LocalPath,
    *,
    out: LocalPath | None = None,
    step: Step = None,
    weights: Weights = "ema",
    seed: Seed = 0,
    num_seen: PositiveInt = 24,
    num_held_out: PositiveInt = 16,
    data: LocalPath | None = None,
    encoders: Sequence[LocalPath] = (),
    **settings: Any,
) -> Path:
    """Draws captions the run was trained on and captions it never saw, on one sheet.

    Needs no text encoder: the states stored with the data set are used.

    Args:
      workdir: run folder.
      out: picture file; `samples/STEP.png` in the run folder by default.
      step: which checkpoint; the newest by default.
      weights: "ema" or "raw".
      seed: of the noise.
      num_seen: pictures of training captions.
      num_held_out: pictures of validation captions.
      data: folder of the data set, if it was moved.
      encoders: folders with the weights of its codec, if they were moved.
      **settings: fields of `SampleConfig` that differ from the run's; None is ignored.

    Returns:
      The path of the sheet.
    """
    if out is not None:
        out = _checked_picture(out)
    config = _load_config(workdir, settings, data=data, encoders=encoders)
    codec = config.data.codec()
    parts = [
        ("captions seen in training", "train", num_seen),
        ("captions held out", "validation", num_held_out),
    ]
    texts = [
        captions.stored_captions(config.data, split, count=count)
        for _, split, count in parts
    ]
    conditioning = jax.tree.map(
        lambda *rows: np.concatenate(rows), *(text for _, _, text in texts)
    )
    shapes = [shape for _, shapes, _ in texts for shape in shapes]
    with checkpoint.pinned_for_all(workdir, step) as step:
        if out is None:
            out = _checked_picture(Path(workdir) / "samples" / f"{step}.png")
        images = _draw(
            workdir,
            config,
            codec,
            conditioning,
            shapes=shapes,
            step=step,
            weights=weights,
            seed=seed,
        )
    sections = []
    for (title, _, _), (names, _, _) in zip(parts, texts, strict=True):
        sections.append(sheet.Section(title, images[: len(names)], names))
        images = images[len(names) :]
    manifest = config.data.manifest()
    picture = sheet.draw_sheet(
        sections,
        title=f"{manifest.name}, depth {config.model.depth}, step {step:,}: "
        f"{config.sample.num_steps} {config.sample.solver} steps, guidance "
        f"{config.sample.guidance_scale:g}",
        footer=manifest.licence,
    )
    sheet.save_picture(picture, out)
    return out


def _checked_picture(path: Path | str) -> Path:
    """The path of a picture, once it is certain that it can be written."""
    whole_files.check_writable(path, field="--out", suffixes=SHEETS)
    return Path(path)


def _shape_of(manifest: Manifest, aspect: float | None) -> tuple[int, int, int]:
    """(H, W, C) of latents to draw: those of a square, or nearest to width / height."""
    if aspect is None:
        return manifest.latent_shape
    sizes = [shape[:2] for shape in manifest.latent.shapes]
    if len(sizes) == 1:
        raise UserError(
            f"--aspect needs data of several aspect buckets, got {aspect:g} for the "
            f"data set {manifest.name}, which has one; leave it out."
        )
    numerator, denominator = aspect.as_integer_ratio()
    size = nearest_bucket(denominator, numerator, sizes)
    return (*size, manifest.latent_shape[-1])


def _draw(
    workdir: Path | str,
    config: Config,
    codec: ImageCodec,
    conditioning: Conditioning,
    *,
    shapes: Sequence[tuple[int, int, int]],
    step: int | None,
    weights: str,
    seed: int,
) -> list[np.ndarray]:
    """Samples with a checkpoint and decodes: for each row [height, width, 3] uint8.

    A picture does not depend on the shapes of the others: its noise is that of its row.
    """
    mesh = make_reading_mesh(config)
    model = make_model(config.model, layout=MeshLayout(mesh))
    params = checkpoint.restore_params(
        workdir,
        abstract_params_on(model, mesh=mesh),
        weights=weights,
        step=step,
    )
    images: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(shapes):
        rows = [row for row, own in enumerate(shapes) if own == shape]
        noise = sample_noise(seed, num_samples=len(shapes), latent_shape=shape)
        latents = sample_latents(
            model,
            params,
            noise[np.array(rows)],
            jax.tree.map(lambda leaf: leaf[rows], conditioning),  # noqa: B023
            unconditional=captions.empty_caption(config.data),
            formulation=formulations.parse(config.objective),
            config=config.sample,
            mesh=mesh,
        )
        images |= dict(zip(rows, codec.decode(latents), strict=True))
    return [images[row] for row in range(len(shapes))]


def _load_config(
    workdir: Path | str,
    settings: Mapping[str, Any],
    *,
    data: Path | str | None,
    encoders: Sequence[Path | str],
) -> Config:
    """The config of a run, with settings of its `sample` section that differ."""
    config = load_trained(workdir, data=data, encoders=encoders)
    given = {name: value for name, value in settings.items() if value is not None}
    sample_config = dataclasses.replace(config.sample, **given)
    return dataclasses.replace(config, sample=sample_config)
