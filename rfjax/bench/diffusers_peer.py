# SPDX-License-Identifier: Apache-2.0
"""The same train step in PyTorch: diffusers' transformer, autograd and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from rfjax.errors import MissingPackageError
from rfjax.types import Batch

if TYPE_CHECKING:
    import torch


def make_step(
    transformer_config: Mapping[str, Any],
    batch: Batch,
    *,
    optimizer: Mapping[str, Any],
    clip_norm: float,
    ema_decay: float,
    ema_every_steps: int,
    num_params: int,
) -> Callable[[], None]:
    """Makes one step of rectified flow on a fixed batch, in float32 on the CPU.

    The step does what an rfjax step does: logit-normal timesteps, noise, forward,
    backward, clipping, AdamW (PyTorch's fused kernel) and the moving average.

    Args:
      transformer_config: fields of `SD3Transformer2DModel`.
      batch: examples, as NumPy arrays.
      optimizer: lr, betas, eps and weight_decay of `torch.optim.AdamW`.
      clip_norm: global norm that gradients are clipped to.
      ema_decay: decay of the moving average.
      ema_every_steps: steps between its updates.
      num_params: number of parameters that the model must have.

    Raises:
      MissingPackageError: torch or diffusers are not installed.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"--peer=diffusers needs torch and diffusers ({error}); run "
            "`pip install 'rfjax[test]'`."
        ) from error

    transformer = getattr(diffusers, transformer_config["_class_name"])
    model = transformer.from_config(dict(transformer_config))
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != num_params:
        raise AssertionError(f"peer has {found} parameters, expected {num_params}")
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    adam = torch.optim.AdamW(parameters, fused=True, **optimizer)
    latents = _tensor(torch, batch.latents).permute(0, 3, 1, 2).contiguous()
    context = _tensor(torch, batch.conditioning.context)
    pooled = _tensor(torch, batch.conditioning.pooled)
    steps_done = 0

    def step() -> None:
        """Trains one step."""
        nonlocal steps_done
        timesteps = torch.sigmoid(torch.randn(len(latents)))
        noise = torch.randn_like(latents)
        t = timesteps[:, None, None, None]
        velocity = model(
            hidden_states=(1 - t) * latents + t * noise,
            timestep=1000 * timesteps,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        torch.nn.functional.mse_loss(velocity, noise - latents).backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        adam.step()
        adam.zero_grad()
        steps_done += 1
        if steps_done % ema_every_steps == 0:
            torch._foreach_lerp_(average, [p.detach() for p in parameters],
                                 1 - ema_decay)  # fmt: skip

    return step


def _tensor(torch: ModuleType, array: np.ndarray) -> torch.Tensor:
    """A copy in float32."""
    return torch.from_numpy(np.array(array, np.float32))
