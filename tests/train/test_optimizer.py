# SPDX-License-Identifier: Apache-2.0
"""Parameterisations: rates by hand, nothing changed at the base, nobody forgotten."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from rfjax.models import make_model
from rfjax.models.mmdit import MMDiTConfig
from rfjax.parallel.sharding import parameter_path
from rfjax.train import parameterisation
from rfjax.train.optimizer import OptimizerConfig, make_init, make_optimizer

STANDARD = OptimizerConfig(weight_decay=0.1)
MUP = dataclasses.replace(STANDARD, parameterisation="mup", base_depth=2)


def leaves_by_path(tree):
    return {
        parameter_path(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# One parameter of every kind, for models of depth 4: 64 * 4 wide.
SHAPES = {
    "patch_embed/kernel": (16, 256),
    "pooled_embed/hidden/kernel": (5, 256),
    "pooled_embed/out/kernel": (256, 256),
    "blocks/image/query/kernel": (3, 256, 256),
    "blocks/image/query/bias": (3, 256),
    "blocks/image/query_norm/scale": (3, 64),
    "blocks/image/modulation/kernel": (3, 256, 6 * 256),
    "blocks/text/modulation/bias": (3, 6 * 256),
    "last_block/text/modulation/kernel": (256, 2 * 256),
    "final/modulation/bias": (2 * 256,),
    "final/linear/kernel": (256, 16),
    "final/linear/bias": (16,),
}


def tree_of(leaves):
    """{"a/b": leaf} to {"a": {"b": leaf}}."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def first_step(*, config, depth=4):
    """Updates, signs of the gradients and parameters, each by path."""
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(size=shape).astype("f4") for path, shape in SHAPES.items()
    }
    signs = {
        path: rng.choice([-1, 1], size=shape).astype("f4")
        for path, shape in SHAPES.items()
    }

    @jax.jit
    def update(grads, params):
        model = make_model(MMDiTConfig(depth=depth))
        optimizer = make_optimizer(config, model=model)
        state = optimizer.init(params)
        updates, _ = optimizer.update(grads, state, params, learning_rate=-1.0)
        return updates

    grads = {path: np.float32(1e-4) * sign for path, sign in signs.items()}
    return leaves_by_path(update(tree_of(grads), tree_of(params))), signs, params


def test_first_step_of_every_kind_by_hand():
    """Depth 4, base 2: twice as wide, twice as deep. Adam's first step is a sign."""
    updates, signs, params = first_step(config=MUP)
    vector = np.ones(256)  # of the width
    for path, factor, decay in (
        ("patch_embed/kernel", 1, 0.1),
        ("pooled_embed/hidden/kernel", 1, 0.1),
        ("pooled_embed/out/kernel", 1 / 2, 0.1),
        ("blocks/image/query/kernel", 1 / 2, 0.1),
        ("blocks/image/query/bias", 1, 0),
        ("blocks/image/query_norm/scale", 1, 0),
        # shift, scale, gate of attention, then of the MLP
        ("blocks/image/modulation/kernel", np.kron(2 * [1 / 2, 1 / 2, 1 / 4], vector),
         0.1),
        ("blocks/text/modulation/bias", np.kron(2 * [1, 1, 1 / 2], vector), 0),
        ("last_block/text/modulation/kernel", 1 / 2, 0.1),  # it has no gates
        ("final/modulation/bias", 1, 0),
        ("final/linear/kernel", 1 / 2, 0.1),
        ("final/linear/bias", 1, 0),
    ):  # fmt: skip
        expected = factor * signs[path] + decay * params[path]
        np.testing.assert_allclose(updates[path], expected, atol=1e-4, err_msg=path)
    standard, _, _ = first_step(config=STANDARD)  # control: the same rate for all
    for path, update in standard.items():
        decay = 0.1 if path.endswith("kernel") else 0
        expected = signs[path] + decay * params[path]
        np.testing.assert_allclose(update, expected, atol=1e-4, err_msg=path)


def test_gates_of_a_second_attention_are_found(tiny_model):
    network = tiny_model(depth=4, dual_attention_blocks=2)
    shape = leaves_by_path(network.abstract_params())[
        "dual_blocks/image/modulation/kernel"
    ].shape
    factor = parameterisation.rate_factor(
        "dual_blocks/image/modulation/kernel", shape, model=network, base_depth=1
    )
    expected = 3 * [1 / 4, 1 / 4, 1 / 16]
    np.testing.assert_allclose(factor.reshape(9, 256), np.outer(expected, np.ones(256)))


def test_at_the_base_depth_nothing_changes():
    """To the bit."""
    at_base, _, _ = first_step(config=dataclasses.replace(MUP, base_depth=4))
    standard, _, _ = first_step(config=STANDARD)
    for path in standard:
        np.testing.assert_array_equal(at_base[path], standard[path], err_msg=path)


def test_a_checkpoint_fits_either_parameterisation(tiny_model):
    params = tiny_model().abstract_params()
    states = [
        jax.eval_shape(make_optimizer(config, model=tiny_model()).init, params)
        for config in (STANDARD, MUP)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize("fields", [{}, {"qk_norm": True, "dual_attention_blocks": 1}])
def test_every_parameter_has_one_role(tiny_model, fields):
    network = tiny_model(depth=3, **fields)
    specific = [row.pattern for row in network.backbone.parameters]
    specific.remove("bias")
    for path in network.shapes():
        rows = [p for p in specific if re.search(rf"(^|/){p}$", path)]
        is_plain_bias = network.dims(path)[-1] == "vector" and path.endswith("bias")
        assert len(rows) == (0 if is_plain_bias else 1), path
        assert network.parameter(path).role in parameterisation.EXPONENTS
    with pytest.raises(LookupError, match=r"parameter blocks/gate/kernel has no row"):
        network.parameter("blocks/gate/kernel")


def test_first_weights_keep_their_scale():
    """Times the variance of the standard draw: at depth 4 what theory asks for."""
    leaves = {
        "patch_embed/kernel": np.ones((16, 256), "f4"),
        "timestep_embed/hidden/kernel": np.ones((256, 256), "f4"),
        "timestep_embed/out/kernel": np.ones((256, 256), "f4"),
        "blocks/image/query/kernel": np.ones((3, 256, 256), "f4"),
    }

    def factors(config):
        model = make_model(MMDiTConfig(depth=4))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "init", lambda self, key: tree_of(leaves))
            scaled = leaves_by_path(make_init(config, model=model)(None))
        return {path: float(leaf.max()) for path, leaf in scaled.items()}

    rescaled = factors(dataclasses.replace(MUP, base_depth=1))
    xavier, xavier_at_base = 2 / (16 + 256), 2 / (16 + 64)
    assert rescaled["patch_embed/kernel"] ** 2 * xavier == pytest.approx(xavier_at_base)
    assert rescaled["timestep_embed/hidden/kernel"] == 1
    assert rescaled["timestep_embed/out/kernel"] ** 2 == pytest.approx(1 / 4)
    assert rescaled["blocks/image/query/kernel"] == 1
    assert set(factors(dataclasses.replace(MUP, base_depth=4)).values()) == {1}
    assert set(factors(STANDARD).values()) == {1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameterisation": "mu"}, r"must be one of standard, mup, got 'mu'"),
        ({"parameterisation": "mup"}, r"base_depth must be set with .* = mup"),
        ({"base_depth": 0}, r"optimizer\.base_depth must be at least 1, got 0"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)
