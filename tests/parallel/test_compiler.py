# SPDX-License-Identifier: Apache-2.0
"""Compiler options by platform."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.parallel.compiler import COMPILER_OPTIONS, compiler_options
from rfjax.parallel.mesh import MeshConfig, make_mesh


def test_options_follow_the_devices_of_the_mesh():
    """A platform rejects the options of another as an error."""
    mesh = make_mesh(MeshConfig())
    assert compiler_options(mesh) == COMPILER_OPTIONS["cpu"]
    jax.jit(lambda x: x + 1, compiler_options=compiler_options(mesh))(1)
    chips = np.array([types.SimpleNamespace(platform="tpu")])
    away = types.SimpleNamespace(devices=chips)
    assert compiler_options(away) == COMPILER_OPTIONS["tpu"]
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options=compiler_options(away))(1)


def test_no_instruction_reaches_over_unrolled_blocks(tiny_model, random_batch):
    """On a CPU; without the options it does, and further the deeper the model."""
    batch = random_batch(2)

    def most_inputs(depth, options):
        """Most inputs of any instruction that makes an array of tokens."""
        network = tiny_model(depth=depth, unroll=depth)

        def loss(params):
            timesteps = jnp.full(2, 0.5)
            return network.bind(params)(
                batch.latents, timesteps, batch.conditioning
            ).sum()

        gradients = jax.jit(jax.grad(loss), compiler_options=options)
        program = gradients.lower(network.abstract_params()).compile().as_text()
        streams = re.findall(r" = f32\[2,\d+,\d+\]\S* fusion\((.*?)\), kind", program)
        return max(inputs.count("%") for inputs in streams)

    options = compiler_options(make_mesh(MeshConfig()))
    shallow, deep = most_inputs(3, options), most_inputs(6, options)
    assert shallow == deep
    assert most_inputs(6, None) > max(most_inputs(3, None), deep)
