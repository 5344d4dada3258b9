# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: whatever its folder is called."""

import pytest
from matplotlib.figure import Figure

from rfjax.evaluation.curves import draw_curves


def test_a_title_is_no_formula(tmp_path):
    title = r"a$\frac$_<b>&\"^': depth 2"
    evaluation = {
        f"{prefix}/loss_t{k}": 1.0 for prefix in ("val", "val_ema") for k in range(8)
    }
    metrics = [{"step": 1, "val/loss": 1.0}]
    draw_curves(metrics, evaluation, title=title, out=tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    figure = Figure()
    figure.suptitle(title)
    with pytest.raises(ValueError, match="frac"):  # control: it would be parsed
        figure.savefig(tmp_path / "control.png")
