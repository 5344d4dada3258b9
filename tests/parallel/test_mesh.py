# SPDX-License-Identifier: Apache-2.0
"""Meshes of eight simulated devices, and the layouts on them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rfjax.parallel import mesh as meshes
from rfjax.parallel import sharding


def test_one_axis_is_inferred():
    assert meshes.MeshConfig(fsdp=4).resolve(8) == meshes.MeshConfig(data=2, fsdp=4)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=-1))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 2, "fsdp": 3}, r"mesh data=2 fsdp=3 tensor=1 needs 6 devices, 8 are"),
        ({"fsdp": 3}, r"needs a multiple of 3 devices, 8 are visible; set one axis"),
        ({"data": 16}, r"needs 16 devices, 8 are visible"),
    ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(meshes.MeshConfig(**sizes))


def test_a_mesh_that_does_not_divide_the_batch():
    mesh = meshes.MeshConfig(data=2, fsdp=4)
    mesh.check_batch(32, micro_batches=2)
    message = r"must be a multiple of .* = 2 \* 4 \* 2, got 40; the nearest .* is 32"
    with pytest.raises(ValueError, match=message):
        mesh.check_batch(40, micro_batches=2)


def test_put_batch_splits_rows_over_data_and_fsdp(random_batch):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
    batch = random_batch(8)
    placed = meshes.put_batch(batch, mesh=mesh)
    np.testing.assert_array_equal(placed.latents, batch.latents)
    assert placed.latents.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert placed.latents.addressable_shards[0].data.shape == (2, 8, 8, 4)


def test_state_follows_its_parameters(tiny_model):
    """Optimizer moments and EMA are laid out like the parameter they belong to."""
    from rfjax.train.optimizer import OptimizerConfig, make_optimizer
    from rfjax.train.state import init_state

    network = tiny_model()
    optimizer = make_optimizer(OptimizerConfig())
    shapes = jax.eval_shape(
        lambda key: init_state(key, init_params=network.init, optimizer=optimizer),
        jax.random.key(0),
    )
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=4, tensor=2))
    specs = sharding.state_shardings(shapes, mesh=mesh)
    adam = specs.opt_state[1]
    assert specs.params == specs.ema_params == adam.mu == adam.nu
    assert specs.step.spec == adam.count.spec == PartitionSpec()
    kernel = specs.params["blocks"]["image"]["mlp_in"]["kernel"].spec
    assert kernel == PartitionSpec(None, ("fsdp",), ("tensor",))
    out = specs.params["last_block"]["image"]["out"]["kernel"].spec
    assert out == PartitionSpec(("tensor",), ("fsdp",))


def test_every_kernel_is_split(tiny_model):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=4, tensor=2))
    leaves = jax.tree_util.tree_leaves_with_path(tiny_model().abstract_params())
    for key_path, leaf in leaves:
        path = sharding.parameter_path(key_path)
        spec = sharding.parameter_sharding(path, leaf.shape, mesh=mesh).spec
        assert any(spec) or path.endswith(("bias", "scale")), path


def test_an_axis_that_divides_no_parameter_is_refused(tiny_model):
    mesh = meshes.make_mesh(
        meshes.MeshConfig(data=1, fsdp=7), devices=jax.devices()[:7]
    )
    message = r"mesh\.fsdp must divide dim 'embed' .* got 7 for .* choose a divisor of"
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings(tiny_model().abstract_params(), mesh=mesh)


def test_a_parameter_without_a_row_is_refused():
    with pytest.raises(ValueError, match=r"blocks/new/weight has no row"):
        sharding.parameter_dims("blocks/new/weight")


def test_explain_adds_up(tiny_model):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=8))
    params = tiny_model().abstract_params()
    table = sharding.explain(params, mesh=mesh)
    total = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4 / 2**20
    assert float(table.splitlines()[-1].split()[-1]) == pytest.approx(total, abs=0.02)
    split = sharding.explain(
        params, mesh=meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=8))
    )
    assert float(split.splitlines()[-1].split()[-1]) < total / 5  # control
    assert "layers, embed, mlp" in table
