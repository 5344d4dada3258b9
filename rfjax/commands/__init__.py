# SPDX-License-Identifier: Apache-2.0
"""The commands as functions: what a notebook calls, and `rfjax NAME` after its flags.

`fit` and `export` live beside their parts: `rfjax.scaling.report.folder.run_fit` and
`rfjax.export.save.export_run`.
"""

from rfjax.commands.benching import bench_checkpoint, bench_data, bench_step
from rfjax.commands.encoding import encode
from rfjax.commands.evaluating import draw_run, evaluate
from rfjax.commands.planning import layout, plan, search_plans
from rfjax.commands.sampling import sample, sample_sheet
from rfjax.commands.studying import coordinates, sweep
from rfjax.commands.training import import_run, train
from rfjax.commands.verifying import verify_run

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
