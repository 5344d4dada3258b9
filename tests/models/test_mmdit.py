# SPDX-License-Identifier: Apache-2.0
"""The model against its published sizes, its own definition and its symmetries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.models import make_model
from rfjax.models.mmdit import MMDiTConfig
from rfjax.types import Conditioning

TIMESTEPS = jnp.linspace(0.1, 0.9, 8)


@functools.partial(jax.jit, static_argnums=0)
def velocity(network, params, batch):
    return network.bind(params)(batch.latents, TIMESTEPS, batch.conditioning)


@pytest.mark.parametrize(
    ("depth", "billions"),
    # Esser et al. 2024 by a count of the released layout: 16 channels, no qk-norm.
    [(15, 0.496), (18, 0.856), (21, 1.359), (24, 2.028), (30, 3.962), (38, 8.057)],
)
def test_parameter_counts_match_the_published_sizes(depth, billions):
    count = make_model(MMDiTConfig(depth=depth)).num_params
    assert round(count / 1e9, 3) == billions
    # qk-norm: two vectors of 64 in two streams of each block.
    assert make_model(MMDiTConfig(depth=depth, qk_norm=True)).num_params == (
        count + 256 * depth
    )
    assert make_model(MMDiTConfig(depth=depth)).num_params_without_adaln < 0.68 * count


def test_depth_one_has_a_last_block_only(tiny_model, random_batch):
    network = tiny_model(depth=1)
    params = jax.jit(network.init)(jax.random.key(0))
    assert "blocks" not in params
    assert velocity(network, params, random_batch()).shape == (8, 8, 8, 4)


def test_fresh_model_predicts_zero_whatever_it_is_given(tiny_model, random_batch):
    network = tiny_model()
    assert not velocity(
        network, jax.jit(network.init)(jax.random.key(0)), random_batch()
    ).any()


def test_blocks_are_the_identity_at_initialisation(
    tiny_model, random_params, random_batch
):
    """adaLN-zero: with closed gates the blocks' own weights cannot matter."""
    network, batch = tiny_model(depth=3), random_batch()
    params = random_params(network)
    fresh = jax.jit(network.init)(jax.random.key(0))

    def closed(params, seed):
        other = random_params(network, seed=seed)
        for name in ("blocks", "last_block"):
            params = params | {name: dict(other[name])}
            for stream in ("image", "text"):
                params[name][stream] = dict(other[name][stream])
                params[name][stream]["modulation"] = fresh[name][stream]["modulation"]
        return params

    first = velocity(network, closed(params, 1), batch)
    np.testing.assert_array_equal(first, velocity(network, closed(params, 2), batch))
    assert np.abs(first - velocity(network, params, batch)).max() > 1e-3  # control


def test_scan_equals_a_loop_over_the_blocks(tiny_model, random_params, random_batch):
    network, batch = tiny_model(depth=4), random_batch()
    params = random_params(network)
    scanned = velocity(network, params, batch)

    def looped(order):
        import rfjax.models.mmdit.network as mmdit

        def loop(self, blocks, image, text, vector, mask):
            graphdef, stacked = mmdit.nnx.split(blocks)
            for i in order:
                block = mmdit.nnx.merge(graphdef, jax.tree.map(lambda p: p[i], stacked))  # noqa: B023
                image, text = block(image, text, vector, mask)
            return image, text

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mmdit.MMDiT, "_scan", loop)
            # Unwrapped, so that no trace of the scanned model is reused.
            return jax.jit(functools.partial(velocity.__wrapped__, network))(
                params, batch
            )

    np.testing.assert_allclose(scanned, looped([0, 1, 2]), atol=2e-6)
    unrolled = velocity(tiny_model(depth=4, unroll=3), params, batch)
    np.testing.assert_allclose(scanned, unrolled, atol=2e-6)
    assert np.abs(scanned - looped([2, 1, 0])).max() > 1e-3  # control: order matters


@pytest.mark.parametrize("remat", ["dots", "linear", "full"])
def test_remat_changes_no_gradient(tiny_model, random_params, random_batch, remat):
    batch = random_batch()

    def gradient(network, params):
        return jax.jit(
            jax.grad(lambda p: jnp.square(velocity(network, p, batch)).mean())
        )(params)

    plain, params = tiny_model(), random_params(tiny_model())
    rematted = tiny_model(remat=remat)
    assert "remat" in str(
        jax.make_jaxpr(lambda p: velocity(rematted, p, batch))(params)
    )
    expected = gradient(plain, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4),
        expected,
        gradient(rematted, params),
    )
    # Control: a gradient at other parameters differs.
    other = gradient(plain, random_params(plain, seed=5))
    assert (
        np.abs(expected["patch_embed"]["kernel"] - other["patch_embed"]["kernel"]).max()
        > 1e-4
    )


def test_text_queries_of_the_last_block_are_dead(
    tiny_model, random_params, random_batch
):
    network, batch = tiny_model(), random_batch()
    grads = jax.jit(jax.grad(lambda p: jnp.square(velocity(network, p, batch)).mean()))(
        random_params(network)
    )
    assert not np.any(grads["last_block"]["text"]["query"]["kernel"])
    assert np.all(jnp.any(grads["blocks"]["text"]["query"]["kernel"] != 0))
    assert np.any(grads["last_block"]["text"]["key"]["kernel"])
    assert "out" not in grads["last_block"]["text"]


def test_masked_text_changes_nothing(tiny_model, random_params, random_batch):
    network, batch = tiny_model(), random_batch(masked=True)
    params = random_params(network)
    mask = batch.conditioning.context_mask
    noisy_pads = jnp.where(mask[:, :, None], batch.conditioning.context, 9.0)

    def with_text(context, mask):
        conditioning = dataclasses.replace(
            batch.conditioning, context=context, context_mask=mask
        )
        return velocity(
            network, params, dataclasses.replace(batch, conditioning=conditioning)
        )

    masked = with_text(batch.conditioning.context, mask)
    np.testing.assert_allclose(masked, with_text(noisy_pads, mask), atol=1e-6)
    # Control: without a mask pads are data, as in SD3.
    unmasked = with_text(batch.conditioning.context, None)
    assert np.abs(unmasked - with_text(noisy_pads, None)).max() > 1e-2


def test_qk_norm_makes_logits_blind_to_the_scale_of_queries(
    tiny_model, random_params, random_batch
):
    batch = random_batch()

    def change(network, factor=3.0):
        params = random_params(network)
        before = velocity(network, params, batch)
        for block in ("blocks", "last_block"):
            for stream in ("image", "text"):
                params[block][stream]["query"] = jax.tree.map(
                    lambda leaf: factor * leaf, params[block][stream]["query"]
                )
        return np.abs(before - velocity(network, params, batch)).max()

    # The norm's epsilon of 1e-6 leaves a trace.
    assert change(tiny_model(qk_norm=True)) < 1e-4
    assert change(tiny_model(qk_norm=False)) > 1e-3  # control


def test_bfloat16_is_near_float32_and_returns_float32(
    tiny_model, random_params, random_batch
):
    batch, exact = random_batch(), tiny_model()
    params = random_params(exact)
    rounded = velocity(tiny_model(compute_dtype="bfloat16"), params, batch)
    assert rounded.dtype == jnp.float32
    error = np.abs(rounded - velocity(exact, params, batch)).max()
    # Two blocks of 8-bit mantissas; exactly equal would mean no bfloat16 at all.
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (4, 16)])
def test_non_square_latents(tiny_model, random_params, random_batch, shape):
    network = tiny_model()
    batch = random_batch(height=shape[0], width=shape[1])
    assert velocity(network, random_params(network), batch).shape == (8, *shape, 4)


def test_sequence_order_of_text_does_not_matter(
    tiny_model, random_params, random_batch
):
    """Text tokens carry no position of their own: the encoder put it in."""
    network, batch = tiny_model(), random_batch()
    params = random_params(network)

    def with_context(context):
        conditioning = dataclasses.replace(batch.conditioning, context=context)
        return velocity(
            network, params, dataclasses.replace(batch, conditioning=conditioning)
        )

    context = batch.conditioning.context
    expected = with_context(context)
    np.testing.assert_allclose(expected, with_context(context[:, ::-1]), atol=2e-6)
    assert np.abs(expected - with_context(context * 2)).max() > 1e-3  # control


def test_patches_see_their_position(tiny_model, random_params, random_batch):
    network, batch = tiny_model(), random_batch()
    params = random_params(network)
    flipped = dataclasses.replace(batch, latents=batch.latents[:, ::-1])
    outputs = velocity(network, params, batch), velocity(network, params, flipped)
    assert np.abs(outputs[0] - outputs[1][:, ::-1]).max() > 1e-3


# -- Dual attention (SD3.5 medium); its numbers are compared with diffusers elsewhere --


def test_dual_attention_adds_its_parameters_and_no_others():
    plain = make_model(MMDiTConfig(depth=24, qk_norm=True)).num_params
    dual = MMDiTConfig(depth=24, qk_norm=True, dual_attention_blocks=13)
    width = 24 * 64
    # A block gains qkv and out with biases, two norms, three modulations.
    gained = 4 * (width + 1) * width + 2 * 64 + 3 * (width + 1) * width
    assert make_model(dual).num_params == plain + 13 * gained
    shapes = make_model(dual).abstract_params()
    assert shapes["dual_blocks"]["image"]["modulation"]["bias"].shape == (13, 9 * width)
    assert shapes["blocks"]["image"]["modulation"]["bias"].shape == (10, 6 * width)


def test_dual_blocks_come_first(tiny_model, random_params, random_batch):
    """A dual block whose second gate is closed is a plain block."""
    batch, plain = random_batch(), tiny_model(depth=4)
    dual = tiny_model(depth=4, dual_attention_blocks=2)
    params, dual_params = random_params(plain), random_params(dual)
    opened = velocity(dual, dual_params, batch)

    def as_dual(part):
        """The first two blocks of a stacked tree, with nine modulations."""
        part = jax.tree.map(lambda leaf: leaf[:2], part)
        modulation = dual_params["dual_blocks"]["image"]["modulation"]
        width = plain.config.width

        def extend(six, nine):
            gate = jnp.zeros((*six.shape[:-1], width))
            return jnp.concatenate([six, nine[..., 6 * width : -width], gate], axis=-1)

        image = dict(part["image"])
        image["modulation"] = jax.tree.map(extend, image["modulation"], modulation)
        return dual_params["dual_blocks"] | {"image": image, "text": part["text"]}

    closed = params | {
        "dual_blocks": as_dual(params["blocks"]),
        "blocks": jax.tree.map(lambda leaf: leaf[2:], params["blocks"]),
    }
    expected = velocity(plain, params, batch)
    np.testing.assert_allclose(velocity(dual, closed, batch), expected, atol=2e-6)
    assert np.abs(opened - expected).max() > 1e-3  # control


def test_second_attention_sees_no_text(tiny_model, random_params, random_batch):
    network, batch = tiny_model(depth=2, dual_attention_blocks=1), random_batch()
    params = random_params(network)

    def closed(gates):
        """Closes modulations (by their numbers) of the dual block's image stream."""
        kept = np.repeat(~np.isin(np.arange(9), gates), network.config.width)
        for name in ("dual_blocks", "last_block"):
            stream = params[name]["image"]
            keep = kept if name == "dual_blocks" else kept[: 6 * network.config.width]
            modulation = jax.tree.map(lambda m, k=keep: m * k, stream["modulation"])
            changed = params[name] | {"image": stream | {"modulation": modulation}}
            yield name, changed

    def change(gates):
        """How much the output depends on the text with these gates closed."""
        changed = params | dict(closed(gates))
        conditioning = dataclasses.replace(
            batch.conditioning, context=2 * batch.conditioning.context
        )
        other = dataclasses.replace(batch, conditioning=conditioning)
        first = velocity(network, changed, batch)
        return np.abs(first - velocity(network, changed, other)).max()

    # Gate 2 is the joint attention's, gate 8 the second one's.
    assert change([2]) == 0.0
    assert change([8]) > 1e-3  # control


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, r"model\.depth must be at least 1, got 0"),
        ("patch_size", 0, r"model\.patch_size must be between 1 and 64"),
        ("dual_attention_blocks", 2, r"dual_attention_blocks must .*less than .*got 2"),
        ("dual_attention_blocks", -1, r"dual_attention_blocks must be at least 0"),
        ("position_scale", 0.0, r"model\.position_scale must be positive"),
        (
            "remat",
            "some",
            r"model\.remat must be one of none, dots, linear, full, got 'some'",
        ),
        ("attention", "x", r"model\.attention must be one of .*xla"),
        ("compute_dtype", "float8", r"model\.compute_dtype must be one of"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        MMDiTConfig(**{"depth": 2, field: value})


def test_latents_that_do_not_fit_are_refused(tiny_model, random_params, random_batch):
    network = tiny_model()
    params = random_params(network)
    with pytest.raises(ValueError, match=r"patch_size must divide the latents, got 2"):
        velocity(network, params, random_batch(height=7))
    with pytest.raises(ValueError, match=r"max_grid_tokens must be at least .* 10 x 4"):
        velocity(network, params, random_batch(height=20))


def count_matmul_flops(jaxpr) -> int:
    """Walks a jaxpr, counting products and multiplying by the trips of each scan."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            depth = int(np.prod([lhs[axis] for axis in contract]))
            total += 2 * depth * int(np.prod(equation.outvars[0].aval.shape))
        trips = equation.params.get("length", 1)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += trips * count_matmul_flops(inner)
    return total


@pytest.mark.parametrize(("depth", "dual"), [(1, 0), (2, 0), (5, 0), (2, 1), (5, 2)])
def test_flops_agree_with_a_walk_over_the_jaxpr(depth, dual):
    config = MMDiTConfig(
        depth=depth, dual_attention_blocks=dual, compute_dtype="float32"
    )
    network = make_model(config)
    conditioning = Conditioning(
        context=jax.ShapeDtypeStruct((1, 154, 4096), jnp.float32),
        pooled=jax.ShapeDtypeStruct((1, 2048), jnp.float32),
    )
    latents = jax.ShapeDtypeStruct((1, 32, 24, 16), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((1,), jnp.float32)

    def forward(params, latents, timesteps, conditioning):
        return network.bind(params)(latents, timesteps, conditioning)

    jaxpr = jax.make_jaxpr(forward)(
        network.abstract_params(), latents, timesteps, conditioning
    )
    counted = count_matmul_flops(jaxpr.jaxpr)
    assert counted == network.forward_flops(
        latent_shape=(32, 24, 16), context_length=154
    )
    # Control: another text length is another count.
    assert counted != network.forward_flops(
        latent_shape=(32, 24, 16), context_length=153
    )


@pytest.mark.parametrize(
    ("depth", "tera_256", "tera_1024"),
    # Published forward TFLOPs a sample with 154 text tokens; ours reads no text
    # queries in the last block, which is at most 0.6 % less at these depths.
    [(15, 0.145, 2.45), (24, 0.579, 8.44), (38, 2.266, 29.6)],
)
def test_flops_match_the_published_table(depth, tera_256, tera_1024):
    for side, published in ((32, tera_256), (128, tera_1024)):
        counted = make_model(MMDiTConfig(depth=depth)).forward_flops(
            latent_shape=(side, side, 16), context_length=154
        )
        assert counted / 1e12 == pytest.approx(published, rel=6e-3)
