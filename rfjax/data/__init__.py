# SPDX-License-Identifier: Apache-2.0
"""Data: sources, shards on disk, and streams of training and validation batches.

`make_train_stream` and `validation_batches` take either kind of config: `DataConfig`
reads shards, `SyntheticConfig` computes examples without files.
"""

from rfjax.data import pipeline, synthetic
from rfjax.data.pipeline import DataConfig, TrainStream
from rfjax.data.synthetic import SyntheticConfig

__all__ = [
    "DATA_CONFIGS",
    "DataConfig",
    "SyntheticConfig",
    "TrainStream",
    "make_train_stream",
    "read_manifest",
    "validation_batches",
]

# The value of `data.kind` in a config file -> the fields that go with it.
DATA_CONFIGS = {"shards": DataConfig, "synthetic": SyntheticConfig}

_MODULES = {DataConfig: pipeline, SyntheticConfig: synthetic}


def make_train_stream(config: DataConfig | SyntheticConfig, **options) -> TrainStream:
    """`pipeline.make_train_stream` or `synthetic.make_train_stream`, by the config."""
    return _MODULES[type(config)].make_train_stream(config, **options)


def validation_batches(config: DataConfig | SyntheticConfig, **options):
    """`pipeline.validation_batches` or `synthetic.validation_batches`."""
    return _MODULES[type(config)].validation_batches(config, **options)


def read_manifest(config: DataConfig | SyntheticConfig):
    """Returns the `shards.Manifest` of what a config reads."""
    return _MODULES[type(config)].read_manifest(config)
