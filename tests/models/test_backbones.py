# SPDX-License-Identifier: Apache-2.0
"""Every backbone keeps its contract, and the shortest second one trains."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rfjax import commands, models
from rfjax.config import from_config_dict, load_config
from rfjax.models import numerics
from rfjax.models.base import ACTIVATIONS, ROLES, Backbone, Parameter, check_sizes
from rfjax.models.embeddings import patchify, timestep_features, unpatchify
from rfjax.models.layers import Linear, gelu, zeros
from rfjax.parallel.sharding import RULES
from rfjax.train.parameterisation import EXPONENTS, FIRST_WEIGHTS

# -- A second backbone: this is all that it takes --------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """An MLP over patches, moved by the timestep and the pooled text."""

    depth: int
    patch_size: int = 2
    latent_channels: int = 16
    pooled_dim: int = 32
    compute_dtype: str = "float32"
    remat: str = "none"
    num_heads: ClassVar[int] = 1

    @property
    def width(self):
        return 64 * self.depth

    def check_data(self, *, name, latent_shape, context_dim, pooled_dim):
        needed = {"latent_channels": latent_shape[-1], "pooled_dim": pooled_dim}
        check_sizes(self, needed, name=name)

    def num_image_tokens(self, latent_shape):
        return latent_shape[0] * latent_shape[1] // self.patch_size**2


class Mixer(nnx.Module):
    def __init__(self, config, *, rngs, layout):
        self.config, self.layout = config, layout
        patch = config.patch_size**2 * config.latent_channels
        self.inputs = Linear(patch, config.width, rngs=rngs)
        self.vector = Linear(256 + config.pooled_dim, config.width, rngs=rngs)
        self.outputs = Linear(config.width, patch, rngs=rngs, kernel_init=zeros)

    def __call__(self, noisy_latents, timesteps, conditioning):
        _, height, width, _ = noisy_latents.shape
        sizes = {"patch_size": self.config.patch_size}
        pooled = conditioning.pooled.astype(jnp.float32)
        vector = jnp.concatenate([timestep_features(timesteps), pooled], axis=-1)
        hidden = self.inputs(patchify(noisy_latents, **sizes))
        hidden = gelu(hidden + self.vector(vector)[:, None, :])
        return unpatchify(self.outputs(hidden), height=height, width=width, **sizes)


MIXER = Backbone(
    config=MixerConfig,
    network=Mixer,
    parameters=(
        Parameter(r"(inputs|vector)/kernel", ("input", "embed"), "input"),
        Parameter(r"outputs/kernel", ("embed", "output"), "output"),
        Parameter(r"bias", ("vector",), "bias"),
    ),
    forward_flops=lambda config, latent_shape, context_length: (
        4 * config.width * latent_shape[0] * latent_shape[1] * latent_shape[2]
        + 2 * config.width * (256 + config.pooled_dim)
    ),
)


def test_a_second_backbone_trains_and_validates(tmp_path, monkeypatch):
    monkeypatch.setitem(models.BACKBONES, "mixer", MIXER)
    fields = {
        "model": {"kind": "mixer", "depth": 2},
        "data": {"kind": "synthetic"},
        "mesh": {"data": 2, "fsdp": 4},
        "optimizer": {
            "learning_rate": 0.01, "warmup_steps": 1, "parameterisation": "mup",
            "base_depth": 1,
        },
        "ema": {"every_steps": 1},
        "train": {"num_steps": 30, "global_batch_size": 32},
        "checkpoint": {"every_steps": 30},
        "validation": {"num_samples": 32, "batch_size": 32},
    }  # fmt: skip
    config = from_config_dict(fields)
    commands.train(config, workdir=tmp_path / "run", report=lambda line: None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = {name: v for line in lines for name, v in json.loads(line).items()}
    assert found["val/loss"] < 1.75  # 2 if it predicts nothing
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["params"] == 64 * 128 + 288 * 128 + 128 * 64 + 128 + 128 + 64
    assert load_config(tmp_path / "run") == config
    evaluated = commands.evaluate(tmp_path / "run").metrics
    assert evaluated["val/loss"] == pytest.approx(found["val/loss"], rel=1e-6)
    with pytest.raises(ValueError, match="backbone with a layout in PyTorch"):
        _ = models.make_model(config.model).torch


# -- The contract ----------------------------------------------------------------------


@pytest.fixture(params=models.BACKBONES)
def small_model(request):
    """Every backbone at depth 2, its other fields at their defaults."""
    config = models.BACKBONES[request.param].config(depth=2, compute_dtype="float32")
    return models.make_model(config)


def test_configs_keep_the_contract(small_model):
    config = small_model.config
    assert (config.depth, config.width) == (2, 128)
    assert config.num_heads >= 1
    assert config.compute_dtype in numerics.COMPUTE_DTYPES
    assert config.remat in numerics.REMAT_POLICIES
    assert config.num_image_tokens((32, 32, 16)) > 0
    with pytest.raises(ValueError, match=r"model\.latent_channels must be 3 for data"):
        config.check_data(
            name="d", latent_shape=(32, 32, 3), context_dim=4096, pooled_dim=2048
        )


def test_every_parameter_has_dims_a_role_and_float32(small_model):
    leaves = jax.tree.leaves(small_model.abstract_params())
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    for path, shape in small_model.shapes().items():
        dims = small_model.dims(path)
        assert len(dims) == len(shape), path
        assert set(dims) <= set(RULES), path
    for row in small_model.backbone.parameters:
        assert row.role in ROLES
        assert row.first_weights is None or row.first_weights in FIRST_WEIGHTS
    assert set(ROLES) == set(EXPONENTS)


def test_flops_grow_with_the_latents(small_model):
    small, large = (
        small_model.forward_flops(latent_shape=(side, side, 16), context_length=77)
        for side in (16, 32)
    )
    assert 0 < small < large
    assert small_model.train_flops(
        latent_shape=(16, 16, 16), context_length=77
    ) == 3 * small  # fmt: skip


def test_activations_are_those_of_the_contract(small_model, random_batch):
    if small_model.backbone.activations is None:
        pytest.skip("cannot be checked for transfer")
    model = dataclasses.replace(
        small_model,
        config=dataclasses.replace(
            small_model.config,
            latent_channels=4, context_dim=6, pooled_dim=5, max_grid_tokens=8,
            grid_tokens=4,
        ),
    )  # fmt: skip
    batch = random_batch(2)
    found = jax.eval_shape(
        model.activations,
        model.abstract_params(),
        batch.latents,
        jnp.zeros(2),
        batch.conditioning,
    )
    assert set(found) == set(ACTIVATIONS)


def test_torch_layouts_hold_every_parameter_once(small_model):
    if small_model.backbone.torch is None:
        pytest.skip("has no layout in PyTorch")
    torch, shapes = small_model.torch, small_model.shapes()
    assert set(torch.layouts) == set(torch.probe) == set(torch.prefix)
    for layout in torch.layouts:
        tensors = torch.tensors(small_model.config, shapes, layout=layout)
        names = [tensor.name for tensor in tensors]
        assert len(names) == len(set(names))
        assert torch.probe[layout] in names
        assert all(name.startswith(torch.prefix[layout]) for name in names)
        assert sum(np.prod(tensor.shape) for tensor in tensors) == (
            small_model.num_params
        )
