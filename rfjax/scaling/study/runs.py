# SPDX-License-Identifier: Apache-2.0
"""The runs table: one row per evaluated point, from run folders or from a CSV.

Nothing is averaged and nothing is dropped. A row that must not be fitted says why in
its column `reason`; a row in mid-training, whose learning rate has not cooled down,
has `cooldown_end` False.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from rfjax.errors import MissingFileError, UserError
from rfjax.run_folder import RUN_FILE, read_metrics, read_run
from rfjax.scaling.study.csv_file import read_csv_file

DEFAULT_LOSS = "val_ema/loss"  # of run folders; the loss of a CSV is called "loss"

# column -> what it holds
COLUMNS = {
    "run": "name of the run folder",
    "trunk": "the constant-rate run that it branched from, or its own name",
    "depth": "number of blocks, which names the model",
    "params": "number of parameters",
    "params_without_adaln": "number of parameters outside the modulation layers",
    "samples": "training samples seen, D",
    "tokens": "image and text tokens seen",
    "train_flops": "training FLOPs spent: samples times FLOPs per sample",
    "step": "optimizer steps",
    "learning_rate": "peak rate",
    "parameterisation": "how rates go with depth: standard or mup",
    "seed": "of initialisation, data order and noise",
    "cooldown_end": "whether the learning rate has cooled down here",
    "wall_seconds": "time spent in the training loop",
    "data": "name of the data set",
    "data_hash": "its content",
    "validation_protocol": "how the loss was measured",
    "validation_samples": "on how many held-out samples",
    "config_hash": "of the resolved config",
    "code_version": "of the code that trained",
    "status": "running, finished, stopped, diverged or failed",
    "reason": "why the row is not fitted, empty if it may be",
}
_FROM_RUN_FILE = (
    "depth",
    "params",
    "params_without_adaln",
    "learning_rate",
    "parameterisation",
    "seed",
    "config_hash",
    "code_version",
    "data",
    "data_hash",
    "validation_protocol",
)
# Without these a run has no place in the table.
_ALWAYS_THERE = (
    "depth",
    "params",
    "image_tokens",
    "context_tokens",
    "train_flops_per_sample",
)


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The runs table of a sweep folder (or of one run folder), finished or running.

    Args:
      folder: holds run folders, each with `run.json` and `metrics.jsonl`; one that has
        only its config was not started, and has no row.

    Returns: the columns of `COLUMNS` and one for every metric of an evaluator, as
      `val_ema/loss`; one row per evaluation, and one row with a reason for a run that
      has none.
    Raises: MissingFileError if there is no such folder or no run in it; ValueError
      if a run's files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"runs folder {folder} does not exist.")
    if (folder / RUN_FILE).is_file():
        run_folders = [folder]
    else:
        run_folders = sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}"))
    if not run_folders:
        raise MissingFileError(
            f"{folder} holds no run: no {RUN_FILE} in it or in its subfolders."
        )
    rows = [row for run_folder in run_folders for row in _rows_of_run(run_folder)]
    table = pd.DataFrame(rows)
    metrics = sorted(name for name in table if name not in COLUMNS)
    return table.reindex(columns=[*COLUMNS, *metrics])


def load_table(
    path: str | Path, *, columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The runs table of a CSV of other runs.

    Args:
      path: a CSV with a header line, see `csv_file.read_csv_file`.
      columns: our name -> theirs, such as {"params": "N", "samples": "D", "loss":
        "L"}; columns that are not named keep their names.

    Returns: their rows with our names, and `cooldown_end` and `reason` added.
    Raises: MissingFileError if the file is missing; UserError if it is no such CSV or
      lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"table {path} does not exist.")
    table = read_csv_file(path)
    columns = dict(columns or {})
    missing = [theirs for theirs in columns.values() if theirs not in table]
    if missing:
        raise UserError(
            f"table {path.name} has no column {', '.join(missing)}; it has "
            f"{', '.join(table.columns)}. Name them as in params=N,samples=D,loss=L."
        )
    if twice := [t for t in columns.values() if list(columns.values()).count(t) > 1]:
        raise UserError(
            f"--columns must give each column one name, got several for {twice[0]}; "
            "copy the column in the CSV if both are meant."
        )
    table = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    repeated = sorted(table.columns[table.columns.duplicated()])
    if repeated:
        raise UserError(
            f"table {path.name} has several columns for {', '.join(repeated)} once "
            "renamed; name another, or drop one from the CSV."
        )
    table["cooldown_end"] = _cooldown_ends(table, path=path)
    if "reason" not in table:
        table["reason"] = ""
    reasons = table["reason"].astype(object)
    table["reason"] = reasons.where(reasons.notna(), "").astype(str)
    return table


def _cooldown_ends(table: pd.DataFrame, *, path: Path) -> pd.Series:
    """The column cooldown_end as booleans; true in every row if the CSV lacks it."""
    if "cooldown_end" not in table:
        return pd.Series(True, index=table.index)
    known = {"true": True, "false": False, "1": True, "0": False}
    texts = table["cooldown_end"].astype(str).str.lower()
    if unknown := sorted(set(texts) - set(known)):
        raise UserError(
            f"table {path.name} must have True or False in every row of cooldown_end, "
            f"got {unknown[0]!r}; correct it, or drop the column to fit all rows."
        )
    return texts.map(known).astype(bool)


def _rows_of_run(run_folder: Path) -> list[dict]:
    """One row per evaluation of a run."""
    run = read_run(run_folder, required=_ALWAYS_THERE)
    status = run.get("status", "unknown")
    shared = {
        "run": run_folder.name,
        "trunk": run.get("trunk", run_folder.name),
        "reason": "the run diverged" if status == "diverged" else "",
        "cooldown_end": False,
        "status": status,
    }
    shared |= {name: run.get(name) for name in _FROM_RUN_FILE}
    rows = []
    for line in _merge_lines(read_metrics(run_folder)):
        metrics = {
            name: value
            for name, value in line.items()
            if "/" in name and not name.startswith(("train/", "perf/"))
        }
        # The same for the moving average.
        validation_samples = metrics.pop("val/num_samples", None)
        metrics.pop("val_ema/num_samples", None)
        if not metrics:
            continue
        if "samples" not in line:
            raise UserError(
                f"metrics.jsonl of {run_folder} must have samples in the line of step "
                f"{line['step']}; restore it from a copy."
            )
        samples = line["samples"]
        tokens_per_sample = run["image_tokens"] + run["context_tokens"]
        rows.append(
            {
                **shared,
                **metrics,
                "step": line["step"],
                "samples": samples,
                "tokens": samples * tokens_per_sample,
                "validation_samples": validation_samples,
                "train_flops": samples * run["train_flops_per_sample"],
                "wall_seconds": line["wall_seconds"],
                "cooldown_end": bool(line.get("cooldown_end", False)),
            }
        )
    if not rows:
        return [{**shared, "reason": shared["reason"] or "no evaluation yet"}]
    if status == "finished" and run.get("cooldown_steps") != 0:
        rows[-1]["cooldown_end"] = True
    return rows


def _merge_lines(lines: Iterable[dict]) -> list[dict]:
    """Lines of metrics.jsonl, one per step, with the time spent up to it.

    A resumed run repeats the steps since its checkpoint; of two lines the later counts.
    """
    merged: dict[int, dict] = {}
    spent_before, last_seconds = 0.0, 0.0
    for line in lines:
        step = line["step"]
        seconds = line.get("perf/seconds", last_seconds)
        if seconds < last_seconds:  # the clock starts again with every process
            spent_before += last_seconds
        last_seconds = seconds
        for later in [known for known in merged if known > step]:
            del merged[later]
        merged.setdefault(step, {}).update(line, wall_seconds=spent_before + seconds)
    return list(merged.values())
