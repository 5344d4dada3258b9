# SPDX-License-Identifier: Apache-2.0
"""The coordinate check: planted slopes are found, and muP differs from standard."""

import jax
import numpy as np
import pytest

from rfjax.flow.formulations import parse
from rfjax.models import embeddings
from rfjax.scaling.transfer import coordinates
from rfjax.scaling.transfer.coordinate_figure import draw_coordinates
from rfjax.train.optimizer import OptimizerConfig

SLOPES = {"standard": 1.5, "mup": 0.0}


@pytest.fixture
def planted():
    """Changes width ** slope at the last step, and another slope before it."""
    return [
        coordinates.Coordinate(
            parameterisation=name,
            depth=depth,
            width=64 * depth,
            step=step,
            activation=activation,
            size=1.0,
            change=(step > 1) * 1e-3 * step * (64.0 * depth) ** (slope + step - 4),
        )
        for name, slope in SLOPES.items()
        for depth in (1, 2, 4)
        for step in range(5)
        for activation in coordinates.ACTIVATIONS
    ]


def check(tiny_model, batch, **changes):
    settings = {
        "model": tiny_model().config,
        "optimizer": OptimizerConfig(learning_rate=3e-3),
        "formulation": parse("rf/lognorm(0.00,1.00)"),
        "depths": (1, 2),
        "num_steps": 3,
    }
    return coordinates.check_coordinates(batch, **settings | changes)


def test_planted_slopes_are_found(planted):
    for name, by_activation in coordinates.fit_slopes(planted).items():
        assert set(by_activation) == set(coordinates.ACTIVATIONS)
        for slope in by_activation.values():
            assert slope == pytest.approx(SLOPES[name], abs=1e-9)
    at_rest = [point for point in planted if point.step < 2]
    assert np.isnan(coordinates.fit_slopes(at_rest)["mup"]["stream"])


def test_the_figure_draws_every_activation_and_the_last_slopes(planted, tmp_path):
    figure = draw_coordinates(planted)
    assert len(figure.axes) == len(coordinates.ACTIVATIONS)
    for axes in figure.axes:
        # steps 2, 3 and 4 of both
        assert len(axes.lines) == 6
        assert {text.get_text() for text in axes.texts} == {"+1.50", "+0.00"}
    figure.savefig(tmp_path / "coordinates.png")
    alone = draw_coordinates([p for p in planted if p.parameterisation == "mup"])
    assert {len(axes.lines) for axes in alone.axes} == {3}


def test_what_is_observed_is_the_forward_pass(tiny_model, random_params, random_batch):
    """The final layer makes the network's velocity of the stream that was seen."""
    network, batch = tiny_model(qk_norm=True), random_batch(2)
    params = random_params(network)
    noise = np.random.default_rng(0).normal(size=batch.latents.shape).astype("f4")

    @jax.jit
    def observe(params):
        seen = coordinates._observe(network, params, batch, noise)
        patches = network.bind(params).final(seen["stream"], seen["conditioning"])
        return seen, embeddings.unpatchify(patches, height=8, width=8, patch_size=2)

    seen, velocity = observe(params)
    assert set(seen) == set(coordinates.ACTIVATIONS)
    np.testing.assert_allclose(seen["velocity"], velocity, atol=1e-4, rtol=1e-4)
    assert seen["logits"].shape == (2, 2, 16, 16)
    # Normed queries and keys have length 8, times the largest scales, over sqrt(64).
    block = params["last_block"]["image"]
    largest = [
        np.abs(block[f"{name}_norm"]["scale"]).max() for name in ("query", "key")
    ]
    assert 0 < float(np.abs(seen["logits"]).max()) < 8 * np.prod(largest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2,)}, r"depths must be at least two different"),
        ({"depths": (0, 2)}, r"depths must be .* positive"),
        ({"num_steps": 2}, r"steps must be at least 3, got 2"),
    ],
)
def test_wrong_settings_are_refused(tiny_model, changes, message):
    with pytest.raises(ValueError, match=message):
        check(tiny_model, None, **changes)


@pytest.mark.slow
def test_mup_moves_depths_alike_and_standard_does_not(tiny_model, random_batch):
    slopes = {}
    for fields in ({}, {"parameterisation": "mup", "base_depth": 1}):
        optimizer = OptimizerConfig(learning_rate=3e-3, **fields)
        points = check(tiny_model, random_batch(), optimizer=optimizer)
        slopes |= coordinates.fit_slopes(points)
    for activation in ("attention", "mlp", "stream", "velocity"):
        mup, standard = (slopes[n][activation] for n in ("mup", "standard"))
        assert abs(mup) < 0.5 < standard, (activation, mup, standard)
