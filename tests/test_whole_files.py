# SPDX-License-Identifier: Apache-2.0
"""A file or folder appears complete, or everything stays as it was."""

import json

import pytest

from rfjax import whole_files


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "new" / "a.json"
    for value in ({"a": 1}, {"a": 2}):
        whole_files.write_json(path, value)
        assert json.loads(path.read_text()) == value
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    whole_files.write_text(path, "old")

    def fail():
        with whole_files.replacing(path) as partial:
            partial.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "folder"
    with whole_files.new_folder(path) as folder:
        (folder / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "a.txt").read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fail():
        with whole_files.new_folder(tmp_path / "folder") as folder:
            (folder / "a.txt").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_never_takes_the_place_of_files(tmp_path):
    """Not even of files that came while it was being filled."""
    path = tmp_path / "folder"

    def fill():
        with whole_files.new_folder(path):
            path.mkdir()
            (path / "theirs.txt").write_text("kept")

    with pytest.raises(OSError, match="not empty"):
        fill()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "theirs.txt"]


def test_only_an_absent_or_empty_folder_is_free(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("absent", "empty"):
        whole_files.check_free(tmp_path / name, field="out")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="out must be a new or empty folder"):
            whole_files.check_free(taken, field="out")
