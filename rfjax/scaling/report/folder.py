# SPDX-License-Identifier: Apache-2.0
"""`rfjax fit`: one HTML page, its figures as PNG, and `fit.json`, in one folder."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from rfjax import checksums, whole_files
from rfjax.errors import UserError
from rfjax.scaling.laws.fit import FitOptions
from rfjax.scaling.report.analysis import Study, analyse
from rfjax.scaling.report.document import describe
from rfjax.scaling.report.page import page, summary
from rfjax.scaling.study import runs as runs_table

REPORT_FILE = "fit.json"


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What `run_fit` found, and where it wrote that.

    Attributes:
      study: the fits and the rows behind them.
      document: the content of `fit.json`.
      out: the folder with `fit.json`, `index.html` and the figures.
    """

    study: Study
    document: dict[str, Any]
    out: Path

    def summary(self) -> str:
        """The law and its parameters as a few lines of text."""
        return summary(self.study)

    def __str__(self) -> str:
        return f"{self.summary()}\nreport: {self.out / 'index.html'}"


def run_fit(
    *,
    runs: str | Path | None = None,
    table: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path,
    law: str = "chinchilla",
    size_measure: str = "params",
    loss: str | None = None,
    num_bootstraps: int = 1000,
    holdout_largest: bool = True,
    mid_run: bool = False,
    where: str | None = None,
    budgets: Sequence[float] = (),
    forecasts: Sequence[Mapping[str, float]] = (),
    json_file: str | Path | None = None,
    options: FitOptions | None = None,
) -> FitReport:
    """Fits a study and writes its report.

    Args:
      runs: sweep folder; give this or `table`.
      table: CSV of other runs; give this or `runs`.
      columns: our name -> name in the CSV: params, samples, loss, and optionally
        train_flops, depth, run, seed.
      out: folder to write. An earlier report there is replaced if the folder holds
        nothing but the files that its `fit.json` lists, unaltered.
      law: "chinchilla" (size and samples), "size", "samples" or "compute".
      size_measure: "params", "params_without_adaln" or "flops" (per sample).
      loss: column of the loss; by default val_ema/loss of runs, loss of a CSV.
      num_bootstraps: resamples for predictions and the compute-optimal frontier.
      holdout_largest: whether to test the law on its largest model.
      mid_run: whether to also fit rows at which the learning rate has not cooled down.
      where: condition on columns, such as "depth >= 2"; other rows are excluded, with
        that reason.
      budgets: training FLOPs to find the compute-optimal model for.
      forecasts: models to predict, such as {"depth": 12, "samples": 1e6}.
      json_file: path of a second copy of `fit.json`, outside of `out`.
      options: all other options of the fit.

    Raises: CannotFit with the reason if the law cannot be fitted, UserError if `out`
      holds anything else, MissingFileError if the runs or the table are missing; all
      before anything is written.
    """
    if (runs is None) == (table is None):
        raise UserError("give exactly one of runs (a folder) and table (a CSV).")
    out = Path(out)
    earlier_files = whole_files.check_replaceable(
        out, files_of=_files_of_report, field="out"
    )
    _check_copy(json_file, out=out)
    if runs is not None:
        rows = runs_table.load_runs(runs)
        loss = loss or runs_table.DEFAULT_LOSS
    else:
        rows = runs_table.load_table(table, columns=columns)
        loss = loss or "loss"
    options = dataclasses.replace(
        options or FitOptions(), num_bootstraps=num_bootstraps
    )
    study = analyse(
        rows,
        loss=loss,
        law=law,
        size_measure=size_measure,
        holdout_largest=holdout_largest,
        mid_run=mid_run,
        where=where,
        budgets=budgets,
        forecasts=forecasts,
        options=options,
    )
    document = _write_folder(out, study, replaces=earlier_files)
    if json_file is not None:
        whole_files.write_json(json_file, document)
    logging.info("wrote %s", out / "index.html")
    return FitReport(study, document, out)


def _check_copy(path: str | Path | None, *, out: Path) -> None:
    """Raises UserError if the copy of `fit.json` cannot be written outside of `out`."""
    whole_files.check_writable(path, field="--json")
    if path is not None and Path(path).resolve().is_relative_to(out.resolve()):
        raise UserError(
            f"--json must be outside of --out, which is replaced as a whole, got "
            f"{path}; {out / REPORT_FILE} holds the same."
        )


def _files_of_report(out: Path) -> list[str]:
    """Names of the files that an earlier report wrote and that are unaltered since."""
    try:
        written = json.loads((out / REPORT_FILE).read_bytes())["files"]
        return [
            REPORT_FILE,
            *(n for n in written if not checksums.find_damage(out, {n: written[n]})),
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_folder(
    out: Path, study: Study, *, replaces: Sequence[str]
) -> dict[str, Any]:
    """Writes the report in place of an earlier one; returns what `fit.json` holds."""
    # Importing matplotlib takes a second, and only reports need it.
    from rfjax.scaling.report.figures import draw_all

    with whole_files.new_folder(out, replaces=replaces) as folder:
        pictures = []
        for name, caption, figure in draw_all(study):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            (folder / f"{name}.png").write_bytes(buffer.getvalue())
            pictures.append((name, caption, buffer.getvalue()))
        study.table.to_csv(folder / "points.csv", index=False)
        (folder / "index.html").write_text(page(study, pictures), encoding="utf-8")
        files = checksums.compute(folder, sorted(folder.iterdir()))
        document = describe(study) | {"files": files}
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    return document
