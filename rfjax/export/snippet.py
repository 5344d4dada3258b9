# SPDX-License-Identifier: Apache-2.0
"""Python code of a model card: it loads the export, and draws a picture with it."""

from __future__ import annotations

import math
import re
from typing import Any

from rfjax.export.card import Run
from rfjax.flow.timesteps import DynamicShift


def card_code(run: Run, *, layout: str, scheduler: str, decoding: str) -> str:
    """Code that loads an export and, where its files suffice, ends in a picture.

    Args:
      run: where the weights come from.
      layout: of the weights.
      scheduler: class of the scheduler in diffusers, written for velocities only.
      decoding: what `picture_files.write` returned.
    """
    has_scheduler = layout == "diffusers" and run.predicts_velocity
    code = loading_code(
        run, layout=layout, scheduler=scheduler if has_scheduler else None
    )
    if has_scheduler and decoding:
        code += f"\n\n{drawing_code(run, decoding=decoding)}"
    return _imports_first(code)


def _imports_first(code: str) -> str:
    """The code with its imports at the top, plain ones before the others."""
    lines = code.split("\n")
    imports = [line for line in lines if line.startswith(("from ", "import "))]
    rest = [line for line in lines if line not in imports]
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()
    imports.sort(key=lambda line: (line.startswith("from "), line))
    return "\n".join([*imports, "", body])


def loading_code(run: Run, *, layout: str, scheduler: str | None) -> str:
    """Loads the weights, and the scheduler of that class if one was written."""
    code = run.model.torch.loading[layout]
    if scheduler is None:
        return code
    return f"""\
{code}

from diffusers import {scheduler}
scheduler = {scheduler}.from_pretrained("FOLDER", subfolder="scheduler")"""


def drawing_code(run: Run, *, decoding: str) -> str:
    """Draws a caption of the data set with what `loading_code` has loaded.

    Args:
      run: whose settings of the sampler are used.
      decoding: turns `latents` [B, H, W, C] into `images`.
    """
    sample = run.config["sample"]
    height, width, channels = run.manifest.latent_shape
    return f"""\
import numpy as np
import torch
from PIL import Image

# Encoded captions of the data set; an encoder's states of another one do as well.
text = np.load("FOLDER/text_states.npz")
print(text["captions"][0])
context = torch.from_numpy(np.stack([text["context"][0], text["empty_context"]]))
pooled = torch.from_numpy(np.stack([text["pooled"][0], text["empty_pooled"]]))

generator = torch.Generator().manual_seed(0)
latents = torch.randn(1, {channels}, {height}, {width}, generator=generator)
scheduler.set_timesteps({sample["num_steps"]}{_mu(run)})
with torch.no_grad():
    for timestep in scheduler.timesteps:
        captioned, uncaptioned = transformer(
            hidden_states=latents.repeat(2, 1, 1, 1),
            timestep=timestep.repeat(2),
            encoder_hidden_states=context,
            pooled_projections=pooled,
        ).sample.chunk(2)
        velocity = uncaptioned + {sample["guidance_scale"]} * (captioned - uncaptioned)
        latents = scheduler.step(velocity, timestep, latents).prev_sample

latents = latents.permute(0, 2, 3, 1).numpy()
{decoding}
Image.fromarray(images[0]).save("picture.png")"""


def _mu(run: Run) -> str:
    """The further argument of a scheduler with a dynamic shift."""
    fields: Any = run.dynamic_shift
    if fields is None:
        return ""
    num_tokens = run.model.config.num_image_tokens(run.manifest.latent_shape)
    return f", mu={math.log(DynamicShift(**fields).shift(num_tokens)):.8g}"
