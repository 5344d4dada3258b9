# SPDX-License-Identifier: Apache-2.0
"""Eight simulated CPU devices, and no implicit rank promotion, for every test."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs that several tests compile alike are compiled once; workers and subprocesses
# inherit the folder.
_cache = tempfile.TemporaryDirectory(prefix="rfjax-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# A collective holds a thread of XLA's pool until every device has come to it, and one
# device may be in several at once. The pool has a thread a device unless NPROC asks for
# more, and once all of them wait, nothing moves: so more threads, and fewer at once.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    # Tests compile more than they compute; notebooks and the demo run optimised code.
    + " --xla_backend_optimization_level=0"
).strip()

import jax  # noqa: E402  (the environment must be set before JAX starts)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def tiny_model():
    """Keyword arguments -> a Model small enough to compile in seconds."""
    from rfjax.models import make_model
    from rfjax.models.mmdit import MMDiTConfig
    from rfjax.types import ONE_DEVICE

    def make(*, layout=ONE_DEVICE, **fields):
        config = MMDiTConfig(
            **{
                "depth": 2,
                "latent_channels": 4,
                "context_dim": 6,
                "pooled_dim": 5,
                "grid_tokens": 4,
                "max_grid_tokens": 8,
                "compute_dtype": "float32",
                **fields,
            }
        )
        return make_model(config, layout=layout)

    return make


@pytest.fixture(scope="session")
def random_params():
    """Model -> random parameters, none of them zero, so that no term can hide."""

    def make(network, *, seed=0):
        # NumPy, because XLA takes seconds to compile so many small random draws.
        rng = np.random.default_rng(seed)

        def draw(leaf):
            scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
            return rng.normal(scale=scale, size=leaf.shape).astype(leaf.dtype)

        return jax.tree.map(draw, network.abstract_params())

    return make


@pytest.fixture(scope="session")
def random_batch():
    """Sizes -> a Batch for `tiny_model`."""
    from rfjax.types import Batch, Conditioning

    def make(batch_size=8, *, height=8, width=8, tokens=3, seed=0, masked=False):
        keys = jax.random.split(jax.random.key(seed), 3)
        mask = None
        if masked:
            lengths = 1 + jax.numpy.arange(batch_size) % tokens
            mask = jax.numpy.arange(tokens)[None, :] < lengths[:, None]
        return Batch(
            latents=jax.random.normal(keys[0], (batch_size, height, width, 4)),
            conditioning=Conditioning(
                context=jax.random.normal(keys[1], (batch_size, tokens, 6)),
                pooled=jax.random.normal(keys[2], (batch_size, 5)),
                context_mask=mask,
            ),
            sample_index=jax.numpy.arange(batch_size, dtype=jax.numpy.uint32),
        )

    return make
