# SPDX-License-Identifier: Apache-2.0
"""The commands as functions: what a notebook calls, and `rfjax NAME` after its flags.

`fit` and `export` live beside their parts: `rfjax.scaling.report.folder.run_fit` and
`rfjax.export.save.export_run`.
"""

from rfjax.commands.bench.checkpoint import bench_checkpoint
from rfjax.commands.bench.data import bench_data
from rfjax.commands.bench.step import bench_step
from rfjax.commands.coordinates import coordinates
from rfjax.commands.encode import encode
from rfjax.commands.evaluate import draw_run, evaluate
from rfjax.commands.import_weights import import_run
from rfjax.commands.layout import layout
from rfjax.commands.plan import plan, search_plans
from rfjax.commands.sample import sample, sample_sheet
from rfjax.commands.sweep import sweep
from rfjax.commands.train import train
from rfjax.commands.verify import verify_run

__all__ = [
    "bench_checkpoint",
    "bench_data",
    "bench_step",
    "coordinates",
    "draw_run",
    "encode",
    "evaluate",
    "import_run",
    "layout",
    "plan",
    "sample",
    "sample_sheet",
    "search_plans",
    "sweep",
    "train",
    "verify_run",
]
