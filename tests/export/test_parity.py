# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' SD3Transformer2DModel and scheduler, float32 on the CPU."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from rfjax.export import load, save
from rfjax.flow.solvers import integrate
from rfjax.models import make_model
from rfjax.models.mmdit import torch_names
from rfjax.types import Conditioning

pytestmark = [
    # Warnings of torch and diffusers about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
# float32 on both sides, sums of up to 256 depth terms in different orders.
TOLERANCE = 2e-5
NON_SQUARE = (6, 10)
SIZES = [  # depth, qk_norm, dual_attention_blocks
    (2, False, 0),
    (2, True, 0),
    (3, False, 0),
    (3, True, 0),
    (3, False, 1),
    (3, True, 2),  # no block between the dual ones and the last
    pytest.param(6, True, 3, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    return torch


def inputs(config, height, width, seed=0):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((2, height, width, config.latent_channels))
    conditioning = Conditioning(
        context=rng.standard_normal((2, 5, config.context_dim)).astype(np.float32),
        pooled=rng.standard_normal((2, config.pooled_dim)).astype(np.float32),
    )
    return latents.astype(np.float32), np.float32([0.15, 0.9]), conditioning


# These networks run once or twice: quick to compile beats quick to run.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def forward(config):
    return jit(lambda params, args: make_model(config).bind(params)(*args))


def ours(config, leaves, args):
    params = traverse_util.unflatten_dict(leaves, sep="/")
    return np.asarray(forward(config)(params, args))


def theirs(torch, model, args):
    latents, timesteps, conditioning = args
    with torch.no_grad():
        velocity = model(
            hidden_states=torch.from_numpy(latents.transpose(0, 3, 1, 2)),
            timestep=torch.from_numpy(1000 * timesteps),
            encoder_hidden_states=torch.from_numpy(conditioning.context),
            pooled_projections=torch.from_numpy(conditioning.pooled),
        ).sample
    return velocity.numpy().transpose(0, 2, 3, 1)


def from_folder(folder):
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False)


def difference(one, other):
    return np.abs(one - other).max()


@pytest.mark.parametrize(("depth", "qk_norm", "dual"), SIZES)
def test_export_to_diffusers(
    torch, make_config, make_leaves, tmp_path, depth, qk_norm, dual
):
    config = make_config(depth=depth, qk_norm=qk_norm, dual_attention_blocks=dual)
    leaves = make_leaves(config)
    save.write_diffusers(
        leaves.__getitem__, make_model(config), tmp_path / "transformer"
    )
    model = from_folder(tmp_path / "transformer")
    args = inputs(config, *NON_SQUARE)
    expected = theirs(torch, model, args)
    assert expected.std() > 0.3  # the final layer is not zero
    assert difference(ours(config, leaves, args), expected) < TOLERANCE


def test_other_patch_sizes_and_text_widths(torch, make_config, make_leaves, tmp_path):
    config = make_config(
        depth=1, patch_size=4, latent_channels=2, context_dim=9, position_scale=0.75
    )
    leaves = make_leaves(config)
    save.write_diffusers(
        leaves.__getitem__, make_model(config), tmp_path / "transformer"
    )
    args = inputs(config, 16, 16)
    expected = theirs(torch, from_folder(tmp_path / "transformer"), args)
    assert difference(ours(config, leaves, args), expected) < TOLERANCE


@pytest.mark.parametrize(
    "broken",
    [
        "no swap",
        "wrong patch order",
        "position scale",
        "query norm for key norm",
        "second modulation first",
        "no second attention",
    ],
)
def test_control_a_broken_export_differs(
    torch, make_config, make_leaves, tmp_path, monkeypatch, broken
):
    config = make_config(qk_norm=True, dual_attention_blocks=1)
    leaves = exported = make_leaves(config)
    exported_config = config
    if broken == "no swap":
        monkeypatch.setattr(torch_names, "SCALE_FIRST_IN_DIFFUSERS", ())
    elif broken == "wrong patch order":
        kernel = leaves["patch_embed/kernel"].reshape(2, 2, 3, -1)
        kernel = kernel.transpose(2, 0, 1, 3).reshape(12, -1)
        exported = leaves | {"patch_embed/kernel": kernel}
    elif broken == "position scale":
        exported_config = dataclasses.replace(config, position_scale=0.5)
    elif broken == "second modulation first":
        exported = leaves | {
            path: np.roll(leaves[path], 3 * config.width, axis=-1)
            for path in leaves
            if path.startswith("dual_blocks/image/modulation")
        }
    elif broken == "no second attention":
        path = "dual_blocks/image_only/out/kernel"
        exported = leaves | {path: np.zeros_like(leaves[path])}
    else:
        stream = "last_block/text"
        exported = leaves | {
            f"{stream}/key_norm/scale": leaves[f"{stream}/query_norm/scale"]
        }
    save.write_diffusers(
        exported.__getitem__, make_model(exported_config), tmp_path / "transformer"
    )
    args = inputs(config, *NON_SQUARE)
    expected = theirs(torch, from_folder(tmp_path / "transformer"), args)
    assert difference(ours(config, leaves, args), expected) > 100 * TOLERANCE


@pytest.mark.parametrize(("depth", "qk_norm", "dual"), SIZES[:6])
def test_export_to_the_single_file(
    torch, make_config, make_leaves, tmp_path, depth, qk_norm, dual
):
    """diffusers' own converter makes of it what we write for diffusers."""
    from diffusers.loaders.single_file_utils import (
        convert_sd3_transformer_checkpoint_to_diffusers as convert,
    )

    config = make_config(depth=depth, qk_norm=qk_norm, dual_attention_blocks=dual)
    leaves = make_leaves(config)
    save.write_single_file(
        leaves.__getitem__,
        make_model(config),
        tmp_path / "model.safetensors",
        layout="sd3",
    )
    save.write_diffusers(
        leaves.__getitem__, make_model(config), tmp_path / "transformer"
    )
    stored = load_file(tmp_path / "model.safetensors")
    converted = convert({name: torch.from_numpy(v) for name, v in stored.items()})
    direct = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert converted.keys() == direct.keys()
    for name, tensor in converted.items():
        np.testing.assert_array_equal(tensor.numpy(), direct[name], err_msg=name)


@pytest.mark.parametrize(("depth", "qk_norm", "dual"), SIZES)
def test_import_from_diffusers(torch, tmp_path, depth, qk_norm, dual):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_layers=depth,
        attention_head_dim=64,
        num_attention_heads=depth,
        joint_attention_dim=20,
        caption_projection_dim=64 * depth,
        pooled_projection_dim=12,
        pos_embed_max_size=11,
        qk_norm="rms_norm" if qk_norm else None,
        dual_attention_layers=tuple(range(dual)),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".norm_" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    weights = load.open_weights(tmp_path)
    config, params = weights.config, weights.read_params()
    assert (config.depth, config.qk_norm) == (depth, qk_norm)
    assert config.dual_attention_blocks == dual
    # diffusers spreads the 4 tokens of sample_size over the 11 of the table.
    assert (config.grid_tokens, config.position_scale) == (11, 4 / 11)
    config = dataclasses.replace(config, compute_dtype="float32")
    args = inputs(config, *NON_SQUARE)
    expected = theirs(torch, model, args)
    leaves = traverse_util.flatten_dict(params, sep="/")
    assert expected.std() > 0.1
    assert difference(ours(config, leaves, args), expected) < TOLERANCE
    leaves["final/modulation/kernel"] = np.roll(
        leaves["final/modulation/kernel"], config.width, axis=1
    )
    assert difference(ours(config, leaves, args), expected) > 100 * TOLERANCE


def test_the_same_latents_after_20_steps(torch, make_config, make_leaves, tmp_path):
    """FlowMatchEulerDiscreteScheduler + exported transformer, from the same noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    config, shift = make_config(qk_norm=True), 3.0
    leaves = make_leaves(config)
    save.write_diffusers(
        leaves.__getitem__, make_model(config), tmp_path / "transformer"
    )
    save.write_scheduler(tmp_path / "scheduler", shift=shift)
    model = from_folder(tmp_path / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    scheduler.set_timesteps(20)
    noise, _, conditioning = inputs(config, *NON_SQUARE)

    latents = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        timesteps = np.full(2, timestep / 1000, np.float32)
        velocity = theirs(torch, model, (latents.numpy(), timesteps, conditioning))
        latents = scheduler.step(
            torch.from_numpy(velocity), timestep, latents
        ).prev_sample

    network = make_model(config).bind(traverse_util.unflatten_dict(leaves, sep="/"))

    def solve(grid):
        solver = functools.partial(integrate, network, num_steps=20, grid=grid)
        solution = jit(functools.partial(solver, shift=shift))(noise, conditioning)
        return np.asarray(solution.latents)

    assert difference(solve("diffusers"), latents.numpy()) < 1e-4
    assert difference(solve("uniform"), latents.numpy()) > 1e-3
