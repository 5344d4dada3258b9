# SPDX-License-Identifier: Apache-2.0
"""Layers and embeddings against NumPy, PyTorch and JAX's own attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from rfjax.data.buckets import bucket_sizes
from rfjax.models import attention, embeddings, layers


def test_layer_norm_and_modulation_equal_pytorch():
    tokens, shift, scale = (
        np.random.default_rng(i).normal(size=shape).astype(np.float32) * 3
        for i, shape in enumerate([(2, 5, 8), (2, 1, 8), (2, 1, 8)])
    )
    normed = torch.nn.functional.layer_norm(torch.tensor(tokens), (8,), eps=1e-6)
    expected = normed * (1 + torch.tensor(scale)) + torch.tensor(shift)
    actual = layers.modulated_norm(jnp.asarray(tokens), shift=shift, scale=scale)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    assert np.abs(actual - np.asarray(normed)).max() > 0.1  # control: unmodulated


@pytest.mark.parametrize("size", [3.0, 1e-3])  # at 1e-3 the epsilon counts
def test_the_gradient_of_layer_norm_equals_pytorch(size):
    tokens, weights = np.random.default_rng(0).normal(size=(2, 2, 5, 8))
    inputs = torch.tensor((size * tokens).astype(np.float32), requires_grad=True)
    normed = torch.nn.functional.layer_norm(inputs, (8,), eps=1e-6)
    (normed * torch.tensor(weights)).sum().backward()
    actual = jax.grad(lambda x: (layers.layer_norm(x) * weights).sum())(
        jnp.asarray(size * tokens, jnp.float32)
    )
    np.testing.assert_allclose(actual * size, inputs.grad * size, atol=2e-6)


def test_rms_norm_equals_pytorch():
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    module = layers.RMSNorm(8)
    module.scale[...] = jnp.linspace(0.5, 2.0, 8)
    expected = torch.nn.functional.rms_norm(
        torch.tensor(inputs), (8,), torch.linspace(0.5, 2.0, 8), eps=1e-6
    )
    np.testing.assert_allclose(module(jnp.asarray(inputs)), expected, atol=2e-6)


def test_linear_is_xavier_uniform_and_affine():
    module = layers.Linear(300, 200, rngs=nnx.Rngs(0))
    kernel, bound = np.asarray(module.kernel[...]), np.sqrt(6 / 500)
    assert np.abs(kernel).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert not np.any(module.bias[...])
    module.bias[...] = jnp.arange(200.0)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 300)).astype(np.float32)
    np.testing.assert_allclose(
        module(jnp.asarray(inputs)), inputs @ kernel + np.arange(200), atol=2e-4
    )


def test_timestep_features_by_hand():
    timesteps = np.array([0.0, 0.25, 1.0], np.float32)
    frequencies = np.exp(-np.log(10_000) * np.arange(128) / 128)
    angles = 1000 * timesteps[:, None].astype(np.float64) * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    actual = embeddings.timestep_features(jnp.asarray(timesteps))
    # Angles up to 1000 in float32 are exact to 6e-5.
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert np.abs(actual - np.roll(expected, 128, axis=-1)).max() > 0.5  # [sin, cos]


def test_patches_round_trip_and_are_row_column_channel():
    latents = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = embeddings.patchify(latents, patch_size=2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(
        tokens[1, 4].reshape(2, 2, 3), latents[1, 2:4, 2:4]
    )  # token 4 is row 1, column 1
    back = embeddings.unpatchify(tokens, height=4, width=6, patch_size=2)
    np.testing.assert_array_equal(back, latents)


def position_by_hand(row, column, *, width):
    """First half the column, second half the row, each [sin, cos]."""
    omega = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    return np.concatenate(
        [np.sin(column * omega), np.cos(column * omega),
         np.sin(row * omega), np.cos(row * omega)]
    )  # fmt: skip


def test_positions_of_a_square_image_start_at_zero():
    table = embeddings.position_table(
        4, 4, width=64, grid_tokens=4, max_grid_tokens=8
    ).reshape(4, 4, 64)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        np.testing.assert_allclose(
            table[row, column], position_by_hand(row, column, width=64), atol=1e-6
        )


def test_positions_equal_diffusers():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(64, 8, base_size=8, output_type="pt")
    actual = embeddings.position_table(8, 8, width=64, grid_tokens=8, max_grid_tokens=8)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_longer_sides_extrapolate_and_scale_interpolates():
    """At S px a square covers 0 .. 16 - 256/S; longer sides go beyond both ends."""
    options = {"width": 64, "grid_tokens": 64, "max_grid_tokens": 96, "scale": 0.25}
    wide = embeddings.position_table(64, 80, **options).reshape(64, 80, 64)
    for row, column in ((0, 0), (63, 79), (10, 8)):
        expected = position_by_hand(row * 0.25, (column - 8) * 0.25, width=64)
        np.testing.assert_allclose(wide[row, column], expected, atol=1e-6)


def test_stored_positions_are_cropped_from_their_centre(tmp_path):
    table = np.random.default_rng(0).normal(size=(49, 8)).astype(np.float32)
    file = tmp_path / "positions.npy"
    np.save(file, table)
    options = {"width": 8, "grid_tokens": 4, "max_grid_tokens": 7, "file": str(file)}
    cropped = embeddings.position_table(2, 5, **options)
    np.testing.assert_array_equal(
        cropped.reshape(2, 5, 8), table.reshape(7, 7, 8)[2:4, 1:6]
    )
    with pytest.raises(ValueError, match="max_grid_tokens must be at least"):
        embeddings.position_table(8, 5, **options)
    with pytest.raises(
        ValueError, match=r"must hold float32 \(49, 12\), got .* \(49, 8"
    ):
        embeddings.position_table(2, 5, **options | {"width": 12})
    file.unlink()
    with pytest.raises(FileNotFoundError, match="positions.npy does not exist"):
        embeddings.position_table(2, 5, **options)


def test_every_bucket_is_cropped_as_diffusers_crops(tmp_path):
    """From the centre of the table of released models, at all aspect ratios."""
    from diffusers.models.embeddings import PatchEmbed

    embed = PatchEmbed(256, 256, 2, 4, 16, pos_embed_max_size=40)
    file = tmp_path / "positions.npy"
    np.save(file, embed.pos_embed[0].numpy())
    options = {"width": 16, "grid_tokens": 16, "max_grid_tokens": 40}
    for pixels in bucket_sizes(256, multiple=16, max_aspect=4):
        rows, columns = (side // 16 for side in pixels)
        ours = embeddings.position_table(rows, columns, file=str(file), **options)
        theirs = embed.cropped_pos_embed(2 * rows, 2 * columns)[0].numpy()
        np.testing.assert_array_equal(ours, theirs)
        turned = embed.cropped_pos_embed(2 * columns, 2 * rows)[0].numpy()
        assert rows == columns or np.abs(ours - turned).max() > 0.1  # control


def test_every_bucket_is_centred_as_the_paper_says():
    """Row p of h_max is at (p - (h_max - s) / 2) 256 / S, cropped to the picture."""
    size, patch = 512, 16
    sizes = bucket_sizes(size, multiple=2 * patch, max_aspect=4)
    longest, side = max(max(s) for s in sizes) // patch, size // patch
    grid = [(p - (longest - side) / 2) * 256 / size for p in range(longest)]
    for height, width in sizes:
        rows, columns = height // patch, width // patch
        table = embeddings.position_table(
            rows,
            columns,
            width=16,
            grid_tokens=side,
            max_grid_tokens=longest,
            scale=256 / size,
        ).reshape(rows, columns, 16)
        top, left = (longest - rows) // 2, (longest - columns) // 2
        for row, column in ((0, 0), (rows - 1, columns - 1)):
            expected = position_by_hand(grid[top + row], grid[left + column], width=16)
            np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
    assert grid[(longest - side) // 2] == 0  # a square begins at 0


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_jax(masked):
    keys = jax.random.split(jax.random.key(0), 3)
    query = 3 * jax.random.normal(keys[0], (2, 4, 3, 8))
    key = 3 * jax.random.normal(keys[1], (2, 7, 3, 8))
    value = jax.random.normal(keys[2], (2, 7, 3, 8))
    mask = jnp.arange(7)[None, :] < jnp.array([7, 4])[:, None] if masked else None
    actual = attention.joint_attention(query, key, value, mask_BS=mask)
    expected = jax.nn.dot_product_attention(
        query, key, value, mask=None if mask is None else mask[:, None, None, :]
    )
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    # Control: keys in another order against the same values.
    other = attention.joint_attention(query, key[:, ::-1], value, mask_BS=mask)
    assert np.abs(actual - other).max() > 1e-2


def test_attention_survives_large_logits():
    query = jnp.full((1, 2, 1, 64), 40.0)
    outputs = attention.joint_attention(query, query, query)
    np.testing.assert_allclose(outputs, query, rtol=1e-6)
