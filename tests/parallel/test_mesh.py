# SPDX-License-Identifier: Apache-2.0
"""Meshes of eight simulated devices, and the layouts on them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rfjax import main
from rfjax.parallel import sharding
from rfjax.parallel.mesh import (
    MeshConfig,
    arrange,
    make_mesh,
    mesh_utils,
    put_batch,
    reading_share,
)

CONFIG = Path(__file__).parents[2] / "configs" / "debug.py"


def test_one_axis_is_inferred():
    assert MeshConfig(fsdp=4).resolve(8) == MeshConfig(data=2, fsdp=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=-1))
    sizes = {"slice": 1, "data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert dict(mesh.shape) == sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 2, "fsdp": 3},
            r"data=2 fsdp=3 tensor=1 sequence=1 needs 6 devices, 8 are",
        ),
        ({"fsdp": 3}, r"needs a multiple of 3 devices, 8 are visible; set one axis"),
        ({"data": 16}, r"needs 16 devices, 8 are visible"),
    ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**sizes))


def test_a_mesh_that_does_not_divide_the_batch():
    mesh = MeshConfig(data=2, fsdp=4)
    mesh.check_batch(32, micro_batches=2)
    message = r"must be a multiple of .* = 1 \* 2 \* 4 \* 2, got 40; .* that fits is 32"
    with pytest.raises(ValueError, match=message):
        mesh.check_batch(40, micro_batches=2)


def test_a_sequence_axis_that_does_not_divide_the_image_tokens():
    mesh = MeshConfig(sequence=8)
    mesh.check_tokens(256)
    message = r"mesh\.sequence must divide the image tokens .* 8 for 36 tokens; choose"
    with pytest.raises(ValueError, match=message):
        mesh.check_tokens(36)


def test_image_tokens_are_checked_before_anything_is_written(tmp_path, capsys):
    flags = ("mesh.sequence=8", "data.latent_shape=[6, 8, 16]")
    args = ["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    assert main.run([*args, *(f"--config.{flag}" for flag in flags)]) == 1
    assert "got 8 for 12 tokens; choose a divisor of 12" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device of a TPU job, with the fields that meshes use."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "fake"


@pytest.fixture
def in_order(monkeypatch):
    """Devices inside a slice keep their order: fakes have no coordinates."""
    monkeypatch.setattr(
        mesh_utils,
        "create_device_mesh",
        lambda shape, devices, **_: np.array(devices).reshape(shape),
    )


def test_only_the_slice_axis_crosses_slices(in_order):
    devices = [FakeDevice(i, slice_index=i % 2) for i in range(8)]  # interleaved
    axes = {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2, "sequence": 1}
    placed = arrange(devices, axes)
    assert placed.shape == (2, 1, 2, 2, 1)
    for index, block in enumerate(placed):
        assert {device.slice_index for device in block.flat} == {index}
    cpus = arrange(jax.devices(), axes)  # control: in the given order
    assert [device.id for device in cpus.flat] == [d.id for d in jax.devices()]


@pytest.mark.parametrize(("slice_axis", "num_slices"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_slices_is_refused(in_order, slice_axis, num_slices):
    devices = [FakeDevice(i, slice_index=i % num_slices) for i in range(8)]
    axes = {"slice": slice_axis, "data": 8 // slice_axis}
    message = rf"mesh\.slice must be .* got {slice_axis} for {num_slices}; set"
    with pytest.raises(ValueError, match=message):
        arrange(devices, axes)


def fake_mesh(num_processes, **axes):
    """Devices in order, the same number per process."""
    sizes = dataclasses.asdict(MeshConfig(**axes))
    shape = tuple(sizes.values())
    count = int(np.prod(shape))
    devices = [
        FakeDevice(i, 0, process_index=i * num_processes // count) for i in range(count)
    ]
    return SimpleNamespace(
        devices=np.array(devices).reshape(shape), shape=sizes, size=count
    )


@pytest.mark.parametrize(
    ("process", "axes", "share"),
    [
        (0, {"data": 8}, (0, 4)),
        (3, {"data": 8}, (3, 4)),
        (3, {"data": 1, "fsdp": 8}, (3, 4)),
        (3, {"data": 4, "tensor": 2}, (3, 4)),
        # Two processes hold the same rows, so they read the same half.
        (1, {"data": 2, "sequence": 4}, (0, 2)),
        (2, {"data": 2, "tensor": 2, "sequence": 2}, (1, 2)),
        (2, {"data": 1, "sequence": 8}, (0, 1)),
    ],
)
def test_processes_share_out_the_rows_that_they_hold(process, axes, share, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert reading_share(fake_mesh(4, **axes)) == share


def test_rows_held_in_common_by_halves_are_refused():
    with pytest.raises(ValueError, match=r"must stay inside a process .* got 3 \* 1"):
        reading_share(fake_mesh(3, data=2, tensor=3))


def test_put_batch_splits_rows_over_the_batch_axes(random_batch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = random_batch(8)
    placed = put_batch(batch, mesh=mesh)
    np.testing.assert_array_equal(placed.latents, batch.latents)
    assert placed.latents.sharding.spec == PartitionSpec(("slice", "data", "fsdp"))
    assert placed.latents.addressable_shards[0].data.shape == (2, 8, 8, 4)


def test_state_follows_its_parameters(tiny_model):
    """Optimizer moments and EMA are laid out like the parameter they belong to."""
    from rfjax.train.optimizer import OptimizerConfig, make_optimizer
    from rfjax.train.state import init_state

    network = tiny_model()
    optimizer = make_optimizer(OptimizerConfig(), model=network)
    shapes = jax.eval_shape(
        lambda key: init_state(key, init_params=network.init, optimizer=optimizer),
        jax.random.key(0),
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    specs = sharding.state_shardings(
        shapes, params=shapes.params, dims=network.dims, mesh=mesh
    )
    adam = specs.opt_state[1]
    assert specs.params == specs.ema_params == adam.mu == adam.nu
    assert specs.step.spec == adam.count.spec == PartitionSpec()
    kernel = specs.params["blocks"]["image"]["mlp_in"]["kernel"].spec
    assert kernel == PartitionSpec(None, ("fsdp",), ("tensor",))
    out = specs.params["last_block"]["image"]["out"]["kernel"].spec
    assert out == PartitionSpec(("tensor",), ("fsdp",))


def test_every_kernel_is_split(tiny_model):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    model = tiny_model()
    leaves = jax.tree_util.tree_leaves_with_path(model.abstract_params())
    for key_path, leaf in leaves:
        path = sharding.parameter_path(key_path)
        spec = sharding.parameter_sharding(
            path, leaf.shape, dims=model.dims(path), mesh=mesh
        ).spec
        assert any(spec) or path.endswith(("bias", "scale")), path


def test_an_axis_that_divides_no_parameter_is_refused(tiny_model):
    mesh = make_mesh(MeshConfig(data=1, fsdp=7), devices=jax.devices()[:7])
    message = r"mesh\.fsdp must divide dim 'embed' .* got 7 for .* choose a divisor of"
    model = tiny_model()
    params = model.abstract_params()
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings(params, params=params, dims=model.dims, mesh=mesh)


def test_a_parameter_without_a_row_is_a_bug(tiny_model):
    with pytest.raises(LookupError, match=r"blocks/new/weight has no row"):
        tiny_model().dims("blocks/new/weight")
