# SPDX-License-Identifier: Apache-2.0
"""Eight simulated CPU devices, and no implicit rank promotion, for every test."""

import json
import os
import string
import tempfile
import warnings

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


@pytest.fixture(scope="session")
def sd3_parts(tmp_path_factory):
    """A folder with text encoders, tokenizers, autoencoder, scheduler of a small SD3.

    The classes are those of transformers and diffusers, the weights are random. A
    letter is a token, "fox" and "cat" are one each; T5 knows small letters only.
    """
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    import torch

    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("sd3")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and diffusers, about themselves
        torch.manual_seed(0)
        parts = _sd3_text_encoders(transformers)
        parts |= {
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(8, 16), latent_channels=16, norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                use_quant_conv=False, use_post_quant_conv=False,
                shift_factor=0.0609, scaling_factor=1.5305,
            ),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        }  # fmt: skip
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    index = {name: [type(part).__module__.split(".")[0], type(part).__name__]
             for name, part in parts.items()}  # fmt: skip
    index["_class_name"] = "StableDiffusion3Pipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _sd3_text_encoders(transformers):
    """Part of a pipeline -> text encoder or tokenizer."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = [("f", "o"), ("fo", "x</w>"), ("c", "a"), ("ca", "t</w>"), ("r", "e")]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(letter, -6.0) for letter in string.ascii_lowercase + ",.'"]
    pieces += [("▁fox", -4.0), ("▁cat", -4.0), ("▁red", -4.0), ("▁a", -3.5)]
    parts = {
        # The second pads with zeros, which are exclamation marks.
        "tokenizer": transformers.CLIPTokenizer(
            vocab=vocabulary, merges=merges, model_max_length=77
        ),
        "tokenizer_2": transformers.CLIPTokenizer(
            vocab=vocabulary, merges=merges, model_max_length=77, pad_token="!"
        ),
        "tokenizer_3": transformers.T5Tokenizer(
            vocab=pieces, extra_ids=4, model_max_length=512
        ),
    }
    for number, width, activation in (("", 24, "quick_gelu"), ("_2", 40, "gelu")):
        parts[f"text_encoder{number}"] = transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(
                vocab_size=len(words), hidden_size=width, intermediate_size=2 * width,
                num_hidden_layers=3, num_attention_heads=4, projection_dim=width,
                hidden_act=activation, eos_token_id=2, bos_token_id=len(words) - 2,
                initializer_factor=2.0,
            )
        )  # fmt: skip
    parts["text_encoder_3"] = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(parts["tokenizer_3"]) + 4, d_model=80, d_kv=8, d_ff=96,
            num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    return parts


BUCKETS = ((2, 6), (4, 4), (6, 2))  # of latents: 3, 4 and 3 tokens


@pytest.fixture(scope="session")
def write_bucketed():
    """(root, counts by split, seed) -> a data set on disk with three aspect buckets.

    Sizes are those of `tiny_model`; 64 latents[0, 0, 0] is the number of the record.
    """
    import ml_dtypes

    from rfjax.data import shards
    from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
    from rfjax.encoders.images.patch_pca import PatchPCAConfig

    def make_records(split, counts, seed):
        rng = np.random.default_rng((seed, len(split)))

        def draw(*shape):
            return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

        for bucket, count in zip(BUCKETS, counts, strict=True):
            for _ in range(count):
                yield {
                    "latents": draw(*bucket, 4),
                    "context": draw(3, 6),
                    "context_length": np.int32(2),
                    "pooled": draw(5),
                    "annotation": "{}",
                }

    def write(
        root,
        *,
        train=(17, 30, 9),
        validation=(3, 5, 4),
        seed=0,
        empty=1.5,
        **manifest,
    ):
        examples = {}
        for split, counts in (("train", train), ("validation", validation)):
            examples[split] = list(make_records(split, counts, seed))
            for number, record in enumerate(examples[split]):
                record["latents"][0, 0, 0] = number / 64
                record["caption"] = f"{split} {number}"
        codec = PatchPCAConfig(patch_size=2, channels=4).make(
            np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3))
        )
        fields = {
            "name": "bucketed",
            "grade": "test",
            "splits": {split: len(records) for split, records in examples.items()},
            "latent": LatentSpec(shape=(4, 4, 4), codec="patch_pca", buckets=BUCKETS),
            "text": TextSpec(encoders=(EncoderSpec("test", "test", 6, 3, 5),)),
        }
        return shards.write_dataset(
            root,
            manifest=Manifest(**fields | manifest),
            examples=examples,
            empty_caption={
                "context": np.full((3, 6), -2.5),
                "context_length": np.int32(1),
                "pooled": np.full(5, empty),
            },
            save_codec=codec.save,
            records_per_shard=8,
        )

    return write


@pytest.fixture(scope="session")
def bucketed_root(write_bucketed, tmp_path_factory):
    """A data set on disk with three aspect buckets."""
    root = tmp_path_factory.mktemp("data") / "bucketed"
    write_bucketed(root)
    return root
