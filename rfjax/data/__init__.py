# SPDX-License-Identifier: Apache-2.0
"""Data: what a run reads, and how pictures with captions become it.

A run reads one of `DATASETS`, through the contract in `base`. `encode` makes the data
set that the kind `shards` reads, from one of `rfjax.data.sources.SOURCES`.
"""

from rfjax.data.base import Dataset
from rfjax.data.mixture import MixtureConfig
from rfjax.data.pipeline import TrainStream
from rfjax.data.shards import ShardsConfig
from rfjax.data.synthetic import SyntheticConfig

__all__ = [
    "DATASETS",
    "Dataset",
    "MixtureConfig",
    "ShardsConfig",
    "SyntheticConfig",
    "TrainStream",
]

# `data.kind` of a run config -> the other fields.
DATASETS: dict[str, type[Dataset]] = {
    "shards": ShardsConfig,
    "mixture": MixtureConfig,
    "synthetic": SyntheticConfig,
}
