# SPDX-License-Identifier: Apache-2.0
"""From shards to batches: shuffle, repeat, caption dropout, split over processes.

Everything is a function of the position in one endless shuffled stream: which record
stands there, and which captions are dropped. A stream is therefore started anywhere at
once, its whole state is one number, and one or many processes see the same global
batches. `rfjax.data.synthetic` makes the same streams without files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import ml_dtypes
import numpy as np
from grain import experimental as grain_experimental

from rfjax.data import shards
from rfjax.errors import UserError
from rfjax.types import Batch, Conditioning

LATENT_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# Keeps the dropout's random numbers apart from any other use of the same seed.
_DROPOUT_STREAM = 0xD209


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a data set is read for training.

    Attributes:
      path: folder that holds rfjax.json.
      caption_dropout: probability that a caption is replaced by the empty one, drawn
        for each text encoder on its own.
      context_mask: give batches a mask that hides pad tokens. SD3 has none.
      latents_dtype: "float32" or "bfloat16" (as stored; half the bytes to copy).
      shuffle_seed: order of the stream; the run's seed when None.
      read_threads: threads that read and assemble batches, in this process.
      prefetch_batches: batches that are ready or being read, at most.
    """

    path: str
    caption_dropout: float = 0.1
    context_mask: bool = False
    latents_dtype: str = "float32"
    shuffle_seed: int | None = None
    read_threads: int = 16
    prefetch_batches: int = 16

    def __post_init__(self):
        check_reading_fields(self)


def check_reading_fields(config: Any) -> None:
    """Checks the fields that every data config shares. Raises UserError."""
    if not 0.0 <= config.caption_dropout <= 1.0:
        raise UserError(
            "data.caption_dropout must be between 0 and 1, got "
            f"{config.caption_dropout}; SD3 drops each caption with 0.464, one encoder "
            "alone does well with 0.1."
        )
    if config.latents_dtype not in LATENT_DTYPES:
        raise UserError(
            f"data.latents_dtype must be one of {sorted(LATENT_DTYPES)}, got "
            f"{config.latents_dtype!r}."
        )
    if config.read_threads < 0:
        raise UserError(
            f"data.read_threads must be at least 0, got {config.read_threads}; 0 reads "
            "in the calling thread."
        )
    if config.prefetch_batches < 1:
        raise UserError(
            "data.prefetch_batches must be at least 1, got "
            f"{config.prefetch_batches}; choose 2 or more to read ahead."
        )


class TrainStream:
    """Endless iterator over host-local training batches of NumPy arrays.

    Rows of process i of n are positions `next + i`, `next + i + n`, ... of the global
    stream, so the union over processes is the same for every n. `sample_index` is the
    position modulo 2**32, which repeats only after four billion samples.

    Attributes:
      manifest: what the records are.
      spec: a Batch of `jax.ShapeDtypeStruct`, in the shapes `__next__` returns.
    """

    def __init__(self, iterator, *, manifest: shards.Manifest, spec: Batch):
        self._iterator = iterator
        self.manifest = manifest
        self.spec = spec

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> Batch:
        return _to_batch(next(self._iterator))

    def get_state(self) -> dict[str, int]:
        """Returns `{"global_next_index": k}`, equal on all processes; fits in JSON."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a state, whatever the number of processes that saved it."""
        if list(state) != ["global_next_index"] or state["global_next_index"] < 0:
            raise UserError(
                "the data position must be {'global_next_index': k} with k >= 0, got "
                f"{dict(state)}; restore it from a checkpoint of this rfjax."
            )
        self._iterator.set_state({k: int(v) for k, v in state.items()})

    def close(self) -> None:
        """Stops the reading threads."""
        self._iterator.close()


def make_train_stream(
    config: DataConfig,
    *,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainStream:
    """Opens the training split as an endless shuffled stream.

    Args:
      config: what to read and how.
      global_batch_size: examples in a batch over all processes.
      seed: the run's seed; decides dropout, and the order unless
        `config.shuffle_seed` does.
      process_index: of this process.
      process_count: how many processes share each batch.

    Raises:
      MissingFileError: the data set is missing or incomplete.
      UserError: it is damaged, or the batch is not divisible by `process_count`.
    """
    _local_batch_size(global_batch_size, process_count)
    # Small data sets are checked in full, so that damage never looks like learning.
    manifest = shards.check_shards(config.path)
    return stream_from_source(
        shards.open_split(config.path, "train"),
        manifest=manifest,
        empty_caption=shards.read_empty_caption(config.path),
        config=config,
        global_batch_size=global_batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def validation_batches(
    config: DataConfig,
    *,
    batch_size: int,
    num_samples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields the validation split once, in record order, without dropout.

    Args:
      config: what to read and how.
      batch_size: examples in a batch over all processes.
      num_samples: how many records from the first on; all when None.
      process_index: of this process, which gets its block of rows of each batch.
      process_count: how many processes share each batch.

    Yields:
      (batch, valid): host-local; valid is [B] bool, False for rows that only fill up
      the last batch (they repeat the last record).

    Raises:
      FileNotFoundError, ValueError: as `make_train_stream`.
    """
    return batches_from_source(
        shards.open_split(config.path, "validation"),
        manifest=shards.read_manifest(config.path),
        config=config,
        batch_size=batch_size,
        num_samples=num_samples,
        process_index=process_index,
        process_count=process_count,
    )


def read_manifest(config: DataConfig) -> shards.Manifest:
    """Returns the manifest of the data set at `config.path`."""
    return shards.read_manifest(config.path)


def stream_from_source(
    source: Sequence[Mapping[str, np.ndarray]],
    *,
    manifest: shards.Manifest,
    empty_caption: Mapping[str, np.ndarray],
    config: Any,
    global_batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> TrainStream:
    """As `make_train_stream`, from any indexable source of records."""
    local_batch_size = _local_batch_size(global_batch_size, process_count)
    shuffle_seed = seed if config.shuffle_seed is None else config.shuffle_seed

    def prepare(position: int, record: Mapping[str, np.ndarray]):
        rng = np.random.default_rng((seed, _DROPOUT_STREAM, position))
        dropped = rng.random(len(manifest.text.encoders)) < config.caption_dropout
        return _prepare(
            record,
            manifest=manifest,
            config=config,
            sample_index=position,
            empty_caption=empty_caption,
            dropped=dropped,
        )

    dataset = (
        grain.MapDataset.source(source)
        .seed(shuffle_seed % 2**32)
        .shuffle()  # anew in each repetition
        .repeat(None)
        .map_with_index(prepare)
    )
    elastic = grain_experimental.ElasticIterator(
        dataset,
        global_batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        # One thread assembles one batch; more threads than batches would idle.
        read_options=grain.ReadOptions(
            num_threads=min(config.read_threads, config.prefetch_batches),
            prefetch_buffer_size=config.prefetch_batches if config.read_threads else 0,
        ),
    )
    return TrainStream(
        iter(elastic),
        manifest=manifest,
        spec=_make_spec(manifest, config, local_batch_size),
    )


def batches_from_source(
    source: Sequence[Mapping[str, np.ndarray]],
    *,
    manifest: shards.Manifest,
    config: Any,
    batch_size: int,
    num_samples: int | None,
    process_index: int,
    process_count: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """As `validation_batches`, from any indexable source of records."""
    local_batch_size = _local_batch_size(batch_size, process_count)
    num_samples = len(source) if num_samples is None else num_samples
    if not 1 <= num_samples <= len(source):
        raise UserError(
            f"num_samples must be between 1 and the {len(source)} records of the "
            f"validation split, got {num_samples}; encode more validation examples or "
            "ask for fewer."
        )

    def generate():
        for start in range(0, num_samples, batch_size):
            first = start + process_index * local_batch_size
            rows = np.arange(first, first + local_batch_size)
            records = [
                _prepare(
                    source[index],
                    manifest=manifest,
                    config=config,
                    sample_index=index,
                )
                for index in np.minimum(rows, num_samples - 1).tolist()
            ]
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *records)
            yield _to_batch(stacked), rows < num_samples

    # Checked above at once, not at the first batch.
    return generate()


def _local_batch_size(global_batch_size: int, process_count: int) -> int:
    if global_batch_size < 1:
        raise UserError(
            f"the batch size must be at least 1, got {global_batch_size}; choose a "
            "multiple of the number of processes."
        )
    local_batch_size, remainder = divmod(global_batch_size, process_count)
    if remainder:
        raise UserError(
            f"the batch size {global_batch_size} must be divisible by the number of "
            f"processes {process_count}; choose a multiple of {process_count}."
        )
    return local_batch_size


def _prepare(
    record, *, manifest, config, sample_index, empty_caption=None, dropped=(False,)
):
    """Turns one stored record into one row of a batch."""
    encoder = shards.only_encoder(manifest)
    text = empty_caption if dropped[0] else record
    context = _pad_context(text[f"{encoder.prefix}context"], encoder.length)
    row = {
        "latents": record["latents"].astype(LATENT_DTYPES[config.latents_dtype]),
        "context": context,
        "pooled": text[f"{encoder.prefix}pooled"],
        "sample_index": np.uint32(sample_index % 2**32),
    }
    if config.context_mask:
        length = text[f"{encoder.prefix}context_length"]
        row["context_mask"] = np.arange(encoder.length) < length
    return row


def _pad_context(context: np.ndarray, length: int) -> np.ndarray:
    """Appends zero rows to [t, context_dim] up to [length, context_dim]."""
    if context.shape[0] == length:
        return context
    return np.pad(context, ((0, length - context.shape[0]), (0, 0)))


def _to_batch(fields: Mapping[str, Any]) -> Batch:
    return Batch(
        latents=fields["latents"],
        conditioning=Conditioning(
            context=fields["context"],
            pooled=fields["pooled"],
            context_mask=fields.get("context_mask"),
        ),
        sample_index=fields["sample_index"],
    )


def _make_spec(manifest: shards.Manifest, config: Any, batch_size: int) -> Batch:
    def struct(shape, dtype):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    length, context_dim = manifest.context_shape
    fields = {
        "latents": struct(manifest.latent_shape, LATENT_DTYPES[config.latents_dtype]),
        "context": struct((length, context_dim), ml_dtypes.bfloat16),
        "pooled": struct((manifest.pooled_dim,), ml_dtypes.bfloat16),
        "sample_index": struct((), np.uint32),
    }
    if config.context_mask:
        fields["context_mask"] = struct((length,), np.bool_)
    return _to_batch(fields)
