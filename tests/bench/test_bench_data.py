# SPDX-License-Identifier: Apache-2.0
"""The reading benchmark, on a few small records."""

import pytest

from rfjax.bench import data


def test_both_sides_are_measured_alternately(tmp_path):
    manifest = data.write_random_dataset(
        tmp_path / "random",
        latent_shape=(4, 4, 2),
        context_shape=(3, 8),
        pooled_dim=4,
        num_examples=20,
    )
    assert manifest.splits == {"train": 20, "validation": 1}
    report = data.measure_reading(
        tmp_path / "random", batch_size=4, num_batches=3, read_threads=2, rounds=2
    )
    assert len(report.raw) == len(report.pipeline) == 2
    assert min(*report.raw, *report.pipeline) > 0
    assert report.ratios[1] == pytest.approx(report.pipeline[1] / report.raw[1])
    assert "ratio" in str(report)
