# SPDX-License-Identifier: Apache-2.0
"""A file is replaced whole, or stays as it was."""

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
