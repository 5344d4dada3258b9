# SPDX-License-Identifier: Apache-2.0
"""The step: same losses on any mesh, and an optimizer that can be checked by hand."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from rfjax.errors import UserError
from rfjax.flow.formulations import parse
from rfjax.parallel.mesh import MeshConfig, make_mesh, put_batch, replicated
from rfjax.parallel.sharding import (
    MeshLayout,
    parameter_path,
    state_shardings,
)
from rfjax.train.ema import EmaConfig, update_ema
from rfjax.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from rfjax.train.state import TrainState, init_state
from rfjax.train.step import make_train_step

OPTIMIZER = OptimizerConfig(weight_decay=0.1)


class Run(NamedTuple):
    """A few steps.

    Attributes:
      trace: [steps, 2] losses and gradient norms.
      params: after the last step, on the host.
      init: compiled program that makes the state.
      step: compiled step.
    """

    trace: np.ndarray
    params: Any
    init: jax.stages.Compiled
    step: jax.stages.Compiled


def train(make_model, batches, *, mesh=None, devices=1, micro_batches=1, seed=0):
    """Trains a step on each batch."""
    mesh = make_mesh(mesh or MeshConfig(), devices=jax.devices()[:devices])
    network = make_model(layout=MeshLayout(mesh))
    optimizer = make_optimizer(OPTIMIZER, model=network)

    def init(key):
        return init_state(key, init_params=network.init, optimizer=optimizer)

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(
        shapes, params=shapes.params, dims=network.dims, mesh=mesh
    )
    init = jax.jit(init, out_shardings=shardings).lower(jax.random.key(0)).compile()
    state = init(jax.random.key(0))
    step = jax.jit(
        make_train_step(
            network,
            optimizer=optimizer,
            formulation=parse("rf/lognorm(0.00,1.00)"),
            shift=1.0,
            ema=EmaConfig(decay=0.9, every_steps=1),
            seed=seed,
            micro_batches=micro_batches,
        ),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    batches = [put_batch(batch, mesh=mesh) for batch in batches]
    step = step.lower(state, batches[0], 1e-3).compile()
    trace = []
    for batch in batches:
        state, metrics = step(state, batch, 1e-3)
        trace.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert int(state.step) == len(batches)
    assert (
        state.params["blocks"]["image"]["out"]["kernel"].sharding
        == (shardings.params["blocks"]["image"]["out"]["kernel"])
    )
    return Run(np.array(trace), jax.device_get(state.params), init, step)


def slow(**axes):
    return pytest.param(MeshConfig(**axes), marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def batches(random_batch):
    return [random_batch(16, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def on_one_device(tiny_model, batches):
    return train(tiny_model, batches)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        slow(data=1, fsdp=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
        slow(data=2, fsdp=2, sequence=2),
        slow(data=1, fsdp=2, tensor=2, sequence=2),
        slow(slice=2, data=1, fsdp=2, tensor=2),
        slow(slice=2, data=2, fsdp=2),
    ],
    ids=lambda mesh: mesh.describe(),
)
def test_eight_devices_equal_one(tiny_model, batches, on_one_device, mesh):
    assert_equal_runs(train(tiny_model, batches, mesh=mesh, devices=8), on_one_device)


def assert_equal_runs(run, expected):
    np.testing.assert_allclose(run.trace, expected.trace, rtol=1e-5)
    # A gradient that is all rounding has either sign, and Adam makes a whole step of
    # it; so parameters agree but for a handful of entries.
    off = jax.tree.map(
        lambda a, b: np.mean(np.abs(a - b) > 1e-4), run.params, expected.params
    )
    assert max(jax.tree.leaves(off)) < 0.01


@pytest.fixture(scope="module")
def on_two_slices(tiny_model, batches):
    mesh = MeshConfig(slice=2, data=1, fsdp=2, sequence=2)
    return train(tiny_model, batches, mesh=mesh, devices=8)


def test_two_slices_equal_one_device(on_two_slices, on_one_device):
    assert_equal_runs(on_two_slices, on_one_device)


def test_only_shards_of_gradients_cross_slices(tiny_model, on_two_slices):
    """`fsdp` is 2: half of all gradients may cross, and must."""
    crossing = [
        shape
        for line in on_two_slices.step.as_text().splitlines()
        if " all-reduce(" in line or " reduce-scatter(" in line
        # Devices 0 to 3 are slice 0.
        if any(len({d // 4 for d in group}) > 1 for group in replica_groups(line))
        for shape in array_shapes(line)
    ]
    num_params = sum(leaf.size for _, leaf in named_leaves(tiny_model))
    # A few small kernels' gradients are taken from gathered activations instead.
    assert 0.45 < sum(map(math.prod, crossing)) / num_params < 0.55
    sizes = {*map(sorted_tuple, crossing)}
    for path, leaf in named_leaves(tiny_model):
        if path.endswith("kernel"):
            assert sorted_tuple(leaf.shape[-2:]) not in sizes, path
    assert (64, 512) in sizes  # control: that of an MLP kernel [128, 512] crosses


def named_leaves(tiny_model):
    leaves = jax.tree_util.tree_leaves_with_path(tiny_model().abstract_params())
    return [(parameter_path(key_path), leaf) for key_path, leaf in leaves]


def sorted_tuple(shape):
    return tuple(sorted(shape))


def array_shapes(line):
    """Shapes of the results of one HLO instruction."""
    result = re.split(r" (?:all-reduce|reduce-scatter)\(", line)[0]
    for dims in re.findall(r"[a-z]+\d+\[([\d,]*)\]", result):
        yield tuple(map(int, dims.split(","))) if dims else ()


def replica_groups(line):
    """Groups of devices that a collective joins, in each form that XLA prints."""
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        return [[*map(int, g.split(","))] for g in match[1][1:-1].split("},{")]
    iota = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if match := re.search(rf"replica_groups=\[([\d,]+)\]<={iota}", line):
        sizes, dims, order = match.groups()
        return devices_in_order(dims, order).reshape([*map(int, sizes.split(","))])
    match = re.search(
        rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({iota}\))? \{{(.*?)\}}", line
    )
    axes, dims, order, over = match.groups()
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = devices_in_order(dims or str(math.prod(axes.values())), order)
    over = [list(axes).index(name) for name in re.findall(r"'(\w+)'", over)]
    ids = np.moveaxis(ids.reshape(list(axes.values())), over, range(-len(over), 0))
    return ids.reshape(-1, math.prod(ids.shape[-len(over) :]))


def devices_in_order(dims, order):
    dims = [*map(int, dims.split(","))]
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose([*map(int, order.split(","))] if order else None)


def test_replica_groups_are_read_in_every_form():
    for text, groups in (
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ):
        read = replica_groups(f"all-reduce(x), replica_groups={text}, to_apply=add")
        np.testing.assert_array_equal(read, groups)


def test_no_device_ever_holds_a_whole_kernel_while_it_is_drawn(
    tiny_model, on_one_device, on_two_slices
):
    def whole_kernels(run):
        text = run.init.as_text()
        return [
            path
            for path, leaf in named_leaves(tiny_model)
            if path.endswith("kernel")
            and f"f32[{','.join(map(str, leaf.shape))}]" in text
        ]

    assert not whole_kernels(on_two_slices)
    assert whole_kernels(on_one_device)  # control
    sizes = [run.init.memory_analysis() for run in (on_two_slices, on_one_device)]
    split, whole = (size.output_size_in_bytes for size in sizes)
    assert split < 0.6 * whole
    assert sizes[0].temp_size_in_bytes < 0.1 * whole


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
        slow(data=4, tensor=2),
        slow(data=1, fsdp=2, tensor=4),
        slow(data=2, fsdp=2, sequence=2),
        slow(data=1, tensor=2, sequence=4),
        slow(data=1, sequence=8),
        slow(slice=2, data=1, fsdp=2, tensor=2),
        slow(slice=2, data=2, fsdp=2),
    ],
    ids=lambda mesh: mesh.describe(),
)
def test_velocity_of_random_weights_is_the_same_on_any_mesh(
    tiny_model, random_params, random_batch, mesh
):
    """Early losses hardly see the blocks, whose gates start closed; this does.

    So do the gradients of a function of the velocity.
    """
    batch = random_batch(16)

    def velocity(mesh_config, devices):
        mesh = make_mesh(mesh_config, devices=jax.devices()[:devices])
        network = tiny_model(depth=4, layout=MeshLayout(mesh))
        params = random_params(network)
        params = jax.device_put(
            params, state_shardings(params, params=params, dims=network.dims, mesh=mesh)
        )
        timesteps = jnp.linspace(0.1, 0.9, 16)

        def evaluate(params, batch):
            velocity = network.bind(params)(
                batch.latents, timesteps, batch.conditioning
            )
            return jnp.mean(jnp.sin(velocity)), velocity

        evaluate = jax.jit(jax.grad(evaluate, has_aux=True))
        return jax.device_get(evaluate(params, put_batch(batch, mesh=mesh)))

    grads, expected = velocity(MeshConfig(), 1)
    grads_on_mesh, velocity_on_mesh = velocity(mesh, 8)
    # Sums over shards are taken in another order: 1e-6 of values of order 1 to 10.
    np.testing.assert_allclose(velocity_on_mesh, expected, atol=3e-5, rtol=1e-5)
    assert np.abs(expected).max() > 1  # the blocks do something
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()),
        grads_on_mesh,
        grads,
    )


def test_another_seed_differs(tiny_model, batches, on_one_device):
    """Control of the equivalences: noise and timesteps do come from the seed."""
    run = train(tiny_model, batches, seed=1)
    assert np.abs(run.trace / on_one_device.trace - 1).min() > 1e-4


def test_micro_batches_equal_one_batch(tiny_model, batches, on_one_device):
    run = train(tiny_model, batches, micro_batches=4)
    np.testing.assert_allclose(run.trace, on_one_device.trace, rtol=1e-5)


def test_rows_may_stand_in_any_order(tiny_model, batches, on_one_device):
    """Noise belongs to the sample, so hosts may deal out rows as they like."""
    reverse = [jax.tree.map(lambda rows: rows[::-1], batch) for batch in batches]
    run = train(tiny_model, reverse)
    np.testing.assert_allclose(run.trace, on_one_device.trace, rtol=1e-5)
    renamed = [
        dataclasses.replace(b, sample_index=b.sample_index[::-1]) for b in batches
    ]
    other = train(tiny_model, renamed)
    assert np.abs(other.trace / on_one_device.trace - 1).max() > 1e-4  # control


def adamw_by_hand(params, grads, *, config, num_steps):
    """Loshchilov and Hutter's AdamW with global clipping, in float64 NumPy."""
    mu = nu = {name: 0.0 for name in params}
    for i, grad in enumerate(grads):
        norm = np.sqrt(sum(np.square(g).sum() for g in grad.values()))
        grad = {n: g * min(1.0, config.clip_norm / norm) for n, g in grad.items()}
        mu = {n: config.b1 * mu[n] + (1 - config.b1) * g for n, g in grad.items()}
        nu = {n: config.b2 * nu[n] + (1 - config.b2) * g**2 for n, g in grad.items()}
        rate = learning_rate(i, config=config, num_steps=num_steps)
        params = {
            n: p
            - rate
            * (
                mu[n]
                / (1 - config.b1 ** (i + 1))
                / (np.sqrt(nu[n] / (1 - config.b2 ** (i + 1))) + config.eps)
                + (config.weight_decay * p if n == "kernel" else 0.0)
            )
            for n, p in params.items()
        }
    return params


def of_a_layer(leaves):
    """Kernel and bias where the model knows their roles, in float32."""
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), leaves)
    return {"final": {"linear": leaves}}


def test_adamw_equals_numpy(tiny_model):
    rng = np.random.default_rng(0)
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, cooldown_steps=2, weight_decay=0.3,
        clip_norm=2.0, b2=0.95,
    )  # fmt: skip
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    grads = [{n: rng.normal(size=p.shape) for n, p in params.items()} for _ in range(5)]
    optimizer = make_optimizer(config, model=tiny_model())
    actual = of_a_layer(params)
    state = optimizer.init(actual)
    for i, grad in enumerate(grads):
        grad = of_a_layer(grad)
        rate = learning_rate(i, config=config, num_steps=5)
        updates, state = optimizer.update(grad, state, actual, learning_rate=rate)
        actual = optax.apply_updates(actual, updates)
    expected = adamw_by_hand(params, grads, config=config, num_steps=5)
    undecayed = adamw_by_hand(
        params,
        grads,
        config=dataclasses.replace(config, weight_decay=0.0),
        num_steps=5,
    )
    for name in params:
        np.testing.assert_allclose(
            actual["final"]["linear"][name], expected[name], rtol=1e-4, atol=1e-5
        )
    assert (
        np.abs(actual["final"]["linear"]["kernel"] - undecayed["kernel"]).max() > 1e-2
    )  # control
    np.testing.assert_allclose(expected["bias"], undecayed["bias"])


def test_tiny_gradients_are_not_swallowed(tiny_model):
    """AdamW with eps 1e-15 moves by the rate even when gradients are 1e-10."""
    optimizer = make_optimizer(OptimizerConfig(), model=tiny_model())
    params = of_a_layer({"kernel": jnp.zeros((1, 1))})
    updates, _ = optimizer.update(
        of_a_layer({"kernel": jnp.full((1, 1), 1e-10)}),
        optimizer.init(params),
        params,
        learning_rate=0.5,
    )
    kernel = updates["final"]["linear"]["kernel"]
    assert float(kernel[0, 0]) == pytest.approx(-0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("cooldown", "halfway"), [("linear", 0.5), ("sqrt", 1 - np.sqrt(0.5))]
)
def test_schedule_rises_stays_and_falls(cooldown, halfway):
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=4, cooldown_steps=10, cooldown=cooldown
    )
    rates = [learning_rate(i, config=config, num_steps=30) for i in range(31)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(rates[4:21], 2.0)
    assert rates[25] == pytest.approx(2.0 * halfway, rel=1e-6)
    assert rates[30] == pytest.approx(0.0, abs=1e-7)
    assert rates[29] > 0


def test_ema_is_the_weighted_sum_of_its_history():
    config = EmaConfig(decay=0.9, every_steps=2, warmup=False)
    ema = {"p": jnp.float32(1.0)}
    expected = 1.0
    for step in range(1, 9):
        ema = update_ema(ema, {"p": jnp.float32(step)}, step=step, config=config)
        if step % 2 == 0:
            expected = 0.9 * expected + 0.1 * step
        assert float(ema["p"]) == pytest.approx(expected, rel=1e-6)


def test_ema_warmup_forgets_the_start():
    ema = {"p": jnp.float32(100.0)}
    for step in range(1, 61):
        ema = update_ema(
            ema, {"p": jnp.float32(0)}, step=step, config=EmaConfig(every_steps=1)
        )
    assert float(ema["p"]) < 1e-3
    plain = EmaConfig(every_steps=1, warmup=False)
    slow = update_ema({"p": 100.0}, {"p": 0.0}, step=1, config=plain)
    assert float(slow["p"]) == pytest.approx(99.0)  # control


def test_paper_ema_half_life():
    """0.99 every 100 steps halves after about 6,900 steps (section B.3)."""
    config, ema = EmaConfig(warmup=False), 1.0
    for step in range(100, 7000, 100):
        ema = float(update_ema(ema, 0.0, step=step, config=config))
    assert 0.49 < ema < 0.51


def test_fresh_state_has_its_own_copy_of_the_parameters(tiny_model):
    network = tiny_model()
    optimizer = make_optimizer(OPTIMIZER, model=network)
    state = jax.jit(
        lambda key: init_state(key, init_params=network.init, optimizer=optimizer)
    )(jax.random.key(0))
    assert isinstance(state, TrainState)
    pairs = zip(
        jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True
    )
    for param, average in pairs:
        np.testing.assert_array_equal(param, average)
        assert param.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()


OPTIMIZERS = {
    "adamw": optax.adamw(optax.linear_schedule(0.0, 1e-2, 2)),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "adafactor": optax.adafactor(1e-2),
    "lion": optax.lion(1e-3),
    "muon": optax.contrib.muon(1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimizer_is_laid_out(tiny_model, name):
    """Whatever has the shape of its parameter is split like it, the rest is whole."""
    model = tiny_model()
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    shapes = jax.eval_shape(
        lambda key: init_state(
            key, init_params=model.init, optimizer=OPTIMIZERS[name]
        ),
        jax.random.key(0),
    )  # fmt: skip
    shardings = state_shardings(
        shapes, params=shapes.params, dims=model.dims, mesh=mesh
    )
    pairs = zip(
        jax.tree.leaves(shapes.opt_state),
        jax.tree.leaves(shardings.opt_state),
        strict=True,
    )
    kernels = [s.spec for leaf, s in pairs if leaf.shape == (1, 128, 512)]
    whole = PartitionSpec(None, ("fsdp",), ("tensor",))
    assert set(kernels) == ({whole} if name != "adafactor" else set())


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "schedule_free",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("adafactor", "lion", "muon")
        ),
    ],
)
def test_any_optax_transformation_drops_in(tiny_model, random_batch, name):
    """One with a schedule inside ignores the rate that it is given."""
    model, optimizer = tiny_model(depth=1), OPTIMIZERS[name]
    step = make_train_step(
        model,
        optimizer=optimizer,
        formulation=parse("rf/lognorm(0.00,1.00)"),
        shift=1.0,
        ema=EmaConfig(),
        seed=0,
        micro_batches=1,
    )
    step = jax.jit(
        step, compiler_options={"xla_backend_optimization_level": 0}
    )  # compiles faster
    batch = random_batch(4)
    before = jax.jit(
        lambda key: init_state(key, init_params=model.init, optimizer=optimizer)
    )(jax.random.key(0))
    for _ in range(2):
        after = [step(before, batch, rate)[0] for rate in (1.0, 2.0)]
        for one, other in zip(*map(jax.tree.leaves, after), strict=True):
            np.testing.assert_array_equal(one, other)
        moved = jax.tree.map(
            lambda old, new: np.abs(old - new).max(), before.params, after[0].params
        )
        before = after[0]
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("fields", [{}, {"decay": 0.5}, {"warmup": False}])
@pytest.mark.parametrize("every_steps", [1, 4])
def test_the_share_of_the_initial_weights_is_known(fields, every_steps):
    config, share = EmaConfig(every_steps=every_steps, **fields), {"p": 1.0}
    for step in range(1, 11):
        share = update_ema(share, {"p": 0.0}, step=jnp.int32(step), config=config)
        assert config.initial_share(step) == pytest.approx(float(share["p"]), rel=1e-4)


def test_an_average_that_does_not_follow_is_named():
    with pytest.raises(UserError, match=r"at most train\.num_steps = 99, got 100"):
        EmaConfig().check_steps(99)
    EmaConfig().check_steps(100)
    assert EmaConfig(every_steps=1).shortcomings(100) == []
    (missed,) = EmaConfig(every_steps=100).shortcomings(350)
    assert missed.startswith("the last 50 of 350 steps never reach the moving average")
    (slow,) = EmaConfig(decay=0.9999, every_steps=1, warmup=False).shortcomings(100)
    assert slow.startswith("99.0% of the moving average will still be the initial weig")
