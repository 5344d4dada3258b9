# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' SD3Transformer2DModel and scheduler, float32 on the CPU."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from rfjax.evaluation.sample import SampleConfig, sample_latents
from rfjax.export import load, save
from rfjax.flow.formulations import parse
from rfjax.flow.timesteps import DynamicShift
from rfjax.models import make_model
from rfjax.models.mmdit import torch_names
from rfjax.parallel.mesh import MeshConfig, make_mesh
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


@pytest.mark.parametrize(
    "sampling",
    [
        {"shift": 3.0},
        {"shift": 3.0, "solver": "heun"},
        {"dynamic_shift": DynamicShift(base_image_seq_len=8, max_image_seq_len=32)},
    ],
    ids=["euler", "heun", "dynamic"],
)
def test_samples_are_those_of_the_exported_pipeline(
    torch, make_config, make_run, make_leaves, tmp_path, sampling
):
    """diffusers' scheduler and the exported transformer, guided, from the same noise.

    With the settings of the run, which name no grid.
    """
    import diffusers
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
        calculate_shift,
    )

    config = make_config(qk_norm=True)
    sampling = SampleConfig(num_steps=6, guidance_scale=7.0, **sampling)
    report = save.export_run(make_run(config, sample=sampling), out=tmp_path / "export")
    model = from_folder(report.out / "transformer")
    path = report.out / "scheduler"
    name = json.loads((path / "scheduler_config.json").read_text())["_class_name"]
    scheduler = getattr(diffusers, name).from_pretrained(path)
    mu = {}
    if sampling.dynamic_shift is not None:
        # 6 x 10 latents in patches of 2: 15 tokens.
        fields = dataclasses.astuple(sampling.dynamic_shift)
        mu["mu"] = calculate_shift(15, *fields[2:], *fields[:2])
    scheduler.set_timesteps(sampling.num_steps, **mu)
    noise, _, texts = inputs(config, *NON_SQUARE)
    empty = jax.tree.map(lambda leaf: leaf[:1] / 2, texts)

    latents = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        timesteps = np.full(2, timestep / 1000, np.float32)
        captioned, uncaptioned = (
            theirs(torch, model, (latents.numpy(), timesteps, side))
            for side in (texts, jax.tree.map(lambda leaf: leaf.repeat(2, 0), empty))
        )
        velocity = uncaptioned + 7.0 * (captioned - uncaptioned)
        step = scheduler.step(torch.from_numpy(velocity), timestep, latents)
        latents = step.prev_sample

    def draw(**changes):
        return sample_latents(
            make_model(config),
            traverse_util.unflatten_dict(make_leaves(config, seed=1), sep="/"),
            noise,
            texts,
            unconditional=empty,
            formulation=parse("rf"),
            config=dataclasses.replace(sampling, **changes),
            mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        )

    assert difference(draw(), latents.numpy()) < 2e-3 * np.abs(latents.numpy()).max()
    if sampling.solver == "euler" and not mu:
        assert difference(draw(grid="uniform"), latents.numpy()) > 0.1  # control
