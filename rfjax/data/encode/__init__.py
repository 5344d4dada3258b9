# SPDX-License-Identifier: Apache-2.0
"""Encoding: pictures and captions become latents and text states in shards.

dataset       the steps: plan, tasks, merge
config        what is encoded, and how
plan          which record goes into which shard, and what must not change meanwhile
planning      how it is decided
looks         looks at pictures before there is a plan
task          what any process can do: look at pictures, encode a shard
batches       pictures and captions to the features of records
notes         what a finished shard is, and what was noticed
merge         finished shards to a data set
workers       processes that do tasks; `worker` is such a process
work_folder   where all of this lies until the data set is complete
describe      what the manifest says
estimate      how long it will take, and how large it will be
"""

from rfjax.data.encode.config import LAYOUTS, EncodeConfig
from rfjax.data.encode.dataset import Share, encode_dataset, encode_share
from rfjax.data.encode.estimate import Estimate, estimate_encoding

__all__ = [
    "LAYOUTS",
    "EncodeConfig",
    "Estimate",
    "Share",
    "encode_dataset",
    "encode_share",
    "estimate_encoding",
]
