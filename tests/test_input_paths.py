# SPDX-License-Identifier: Apache-2.0
"""Paths in a config.json start at its folder, everywhere else at the current one."""

import os

import pytest

from rfjax import input_paths, whole_files
from rfjax.config import Config, config_to_dict, from_config_dict
from rfjax.config_files import SweepConfig, load_config_file


def fields(path, *, position_file="table.npy"):
    return {
        "seed": 3,
        "model": {"kind": "mmdit", "depth": 1, "position_file": position_file},
        "data": {"kind": "shards", "path": path, "encoders": [path]},
        "train": {"num_steps": 2},
        "metric_writers": [{"kind": "tensorboard", "folder": "tensorboard"}],
        "unknown": {"path": "data"},
    }


def paths_of(values):
    return values["data"]["path"], values["model"]["position_file"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with data, run folders and a link to one."""
    for name in ("home/data", "home/runs/a", "far/b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "link").symlink_to(tmp_path / "far" / "b")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("runs/a", ("../../data", "../../table.npy")),
        ("runs/not/made/yet", ("../../../../data", "../../../../table.npy")),
        (".", ("data", "table.npy")),
        ("link", ("../../home/data", "../../home/table.npy")),
    ],
)
def test_paths_are_seen_from_the_folder_and_back(home, folder, expected):
    given = fields("data")
    stored = input_paths.to_folder(Config, given, folder)
    assert paths_of(stored) == expected
    assert stored["data"]["encoders"] == [expected[0]]
    # Nothing else is a path of an input.
    assert {**stored, "data": 0, "model": 0} == {**given, "data": 0, "model": 0}
    assert input_paths.from_folder(Config, stored, folder) == given


def test_a_folder_that_moves_with_its_data_finds_it(home, tmp_path, monkeypatch):
    stored = input_paths.to_folder(Config, fields("data"), "runs/a")
    home.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    found, _ = paths_of(
        input_paths.from_folder(Config, stored, tmp_path / "moved" / "runs" / "a")
    )
    assert os.path.samefile(found, tmp_path / "moved" / "data")
    # Control: as it was given, it names nothing from here.
    assert not os.path.exists("data")


def test_absolute_paths_stay(home):
    given = fields(str(home / "data"), position_file=None)
    assert input_paths.to_folder(Config, given, "runs/a") == given
    assert input_paths.from_folder(Config, given, "runs/a") == given


def test_what_earlier_versions_wrote_is_found(home):
    """They stored paths that start where training was called."""
    old = fields("data")
    assert paths_of(input_paths.from_folder(Config, old, "runs/a"))[0] == "data"
    (home / "runs" / "a" / "data").mkdir()  # control: the folder comes first
    moved = input_paths.from_folder(Config, old, "runs/a")
    assert paths_of(moved)[0] == "runs/a/data"


@pytest.mark.parametrize(
    "junk",
    [
        {"data": "data"},
        {"data": {"path": "data"}},  # of no kind
        {"data": {"kind": ["shards"], "path": "data"}},
        {"data": {"kind": "shards", "path": 3}},
        {"data": [{"kind": "other", "path": "data"}]},
        {"model": None, "metric_writers": "tensorboard"},
    ],
)
def test_what_is_not_valid_is_left_to_the_checks(home, junk):
    assert input_paths.to_folder(Config, junk, "runs/a") == junk


def test_paths_in_the_base_of_a_sweep(home):
    stored = input_paths.to_folder(
        SweepConfig, {"base": fields("data"), "grid": {}}, "runs/a"
    )
    assert paths_of(stored["base"])[0] == "../../data"


def test_a_config_file_in_json_is_read_from_its_folder(home):
    given = {name: value for name, value in fields("data").items() if name != "unknown"}
    given["ema"] = {"every_steps": 1}
    given["optimizer"] = {"warmup_steps": 0, "cooldown_steps": 0}
    config = from_config_dict(given)
    text = config_to_dict(config, folder="runs/a")
    whole_files.write_json("runs/a/config.json", text)
    assert from_config_dict(load_config_file("runs/a/config.json")) == config


def test_the_paths_of_the_parts_of_a_mixture(home):
    parts = [{"path": "data", "weight": 0.5}, {"path": "more/data"}]
    given = {"data": {"kind": "mixture", "parts": parts}}
    stored = input_paths.to_folder(Config, given, "runs/a")
    paths = [part["path"] for part in stored["data"]["parts"]]
    assert paths == ["../../data", "../../more/data"]
    assert stored["data"]["parts"][0]["weight"] == 0.5
    assert input_paths.from_folder(Config, stored, "runs/a") == given
