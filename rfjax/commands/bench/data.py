# SPDX-License-Identifier: Apache-2.0
"""How fast training data is read."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax import whole_files
from rfjax.bench.data import (
    PEERS,
    ReadingReport,
    measure_dataset,
    measure_layout,
)
from rfjax.bench.data_layouts import LAYOUTS
from rfjax.commands.flags import JsonFile, Report
from rfjax.errors import MissingPackageError, UserError
from rfjax.value_types import LocalPath, OneOf, PositiveInt, checked

# What a peer imports, beside NumPy.
_PACKAGES = {
    "files": ("torch", "safetensors"),
    "webdataset": ("torch", "safetensors", "webdataset"),
    "parquet": ("torch", "pyarrow"),
}


def _read_peers(_: type, tokens: Sequence[Any]) -> list[str]:
    """files,webdataset: their names."""
    return tokens[0].value.split(",")


_PEER_NAMES = Parameter(
    converter=_read_peers, n_tokens=1, accepts_keys=False, metavar="PEER,PEER,..."
)


@checked
def bench_data(
    root: Annotated[LocalPath | None, Parameter(name="--data")] = None,
    *,
    layout: Annotated[str, OneOf(LAYOUTS)] = "sd3",
    peers: Annotated[Sequence[Annotated[str, OneOf(PEERS)]], _PEER_NAMES] = (),
    examples: PositiveInt | None = None,
    rounds: PositiveInt = 5,
    json_file: JsonFile = None,
    report: Report = lambda line: None,
) -> ReadingReport:
    """Times reading training data, compared with bare reads of it and with peers.

    Args:
      root: data folder to read; random records of --layout if absent.
      layout: sd3, Stable Diffusion 3 at 256 px (1.0 MB per example), or mlperf_flux,
        FLUX.1 of MLPerf Training (2.2 MB).
      peers: files, a PyTorch DataLoader over one file per example; webdataset; parquet.
        They read the same random records.
      examples: number of random records, 1 GB of them by default; each side writes
        its own copy of them into the folder for temporary files.
      rounds: how often each side is timed, in turns.
      json_file: file to write the figures to.
      report: receives a line for each step.

    Raises:
      UserError: a wrong setting, or no data folder.
      MissingPackageError: a peer is not installed.

    Example:
      rfjax bench data --peers=files,webdataset,parquet
    """
    whole_files.check_writable(json_file, field="--json")
    if root is not None and peers:
        raise UserError(
            f"--peers read random records, got --data={root} as well; leave out one of "
            "the two."
        )
    _check_packages(peers)
    if root is not None:
        measured = measure_dataset(root, rounds=rounds, report=report)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure_layout(
                LAYOUTS[layout],
                Path(folder),
                peers=tuple(dict.fromkeys(peers)),
                num_examples=examples,
                rounds=rounds,
                report=report,
            )
    if json_file is not None:
        whole_files.write_json(json_file, measured.to_json())
    return measured


def _check_packages(peers: Sequence[str]) -> None:
    """Raises MissingPackageError, naming them, unless the peers can be imported."""
    for peer in peers:
        missing = [n for n in _PACKAGES[peer] if importlib.util.find_spec(n) is None]
        if missing:
            raise MissingPackageError(
                f"--peers={peer} needs {' and '.join(missing)}, not installed here; "
                f"run `pip install {' '.join(missing)}`, or leave the peer out."
            )
