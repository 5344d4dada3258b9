# SPDX-License-Identifier: Apache-2.0
"""Compiler options by platform."""

import types

import jax
import numpy as np

from rfjax.parallel.compiler import COMPILER_OPTIONS, compiler_options
from rfjax.parallel.mesh import MeshConfig, make_mesh


def test_options_follow_the_devices_of_the_mesh():
    """A CPU knows none of a TPU's options: handing them over would be an error."""
    mesh = make_mesh(MeshConfig())
    assert compiler_options(mesh) is None
    jax.jit(lambda x: x + 1, compiler_options=compiler_options(mesh))(1)
    chips = np.array([types.SimpleNamespace(platform="tpu")])
    away = types.SimpleNamespace(devices=chips)
    assert compiler_options(away) == COMPILER_OPTIONS["tpu"]
