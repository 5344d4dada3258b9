# SPDX-License-Identifier: Apache-2.0
"""The members of every extension point, and that each point has the one shape.

What a member must do is tested beside its point; the shortest second members, which
touch no other file, are in tests/models/test_backbones.py,
tests/data/test_data_extension_points.py, tests/evaluation/test_evaluators.py and
tests/scaling/study/test_launchers.py.
"""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package -> (table, its members); a new member is added here on purpose
POINTS = {
    "rfjax.models": ("BACKBONES", "mmdit"),
    "rfjax.encoders.text": ("TEXT_ENCODERS", "minilm clip t5"),
    "rfjax.encoders.images": ("IMAGE_CODECS", "patch_pca autoencoder_kl"),
    "rfjax.data": ("DATASETS", "shards mixture synthetic"),
    "rfjax.data.sources": (
        "SOURCES",
        "emoji emoji_scenes openclipart image_folder table webdataset saved_dataset "
        "tfds_images mlperf_flux",
    ),
    "rfjax.evaluation": ("EVALUATORS", "validation"),
    "rfjax.train.metric_writers": ("METRIC_WRITERS", "tensorboard"),
    "rfjax.scaling.study.launchers": ("LAUNCHERS", "local"),
}


@pytest.mark.parametrize("package", POINTS)
def test_members(package):
    table, members = POINTS[package]
    assert " ".join(getattr(importlib.import_module(package), table)) == members


@pytest.mark.parametrize("package", POINTS)
def test_a_point_has_one_shape(package):
    """base.py holds the contract; a member is a frozen dataclass in its own file."""
    table = getattr(importlib.import_module(package), POINTS[package][0])
    base = importlib.import_module(f"{package}.base")
    contracts = [
        cls for cls in vars(base).values()
        if inspect.isclass(cls) and cls.__module__ == base.__name__
    ]  # fmt: skip
    assert contracts
    assert all(inspect.getdoc(cls) for cls in contracts)
    homes = []
    for kind, row in table.items():
        config = row if isinstance(row, type) else row.config
        assert dataclasses.is_dataclass(config), kind
        assert config.__dataclass_params__.frozen, kind
        assert config.__module__.startswith(f"{package}."), kind
        homes.append(config.__module__.removeprefix(f"{package}.").split(".")[0])
    assert sorted(homes) == sorted(set(homes)), "one file or folder per member"
    assert "base" not in homes


def test_nothing_outside_a_backbone_knows_its_parameters():
    """The path of a parameter is spelled in the folder of its backbone alone."""
    spelled = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "rfjax").rglob("*.py"))
        if "models/mmdit" not in str(path)
        for name in (
            "mlp_in",
            "patch_embed",
            "dual_blocks",
            "query_norm",
            "pooled_embed",
        )
        if f"{name}/" in path.read_text() or f'"{name}"' in path.read_text()
    ]
    assert not spelled
