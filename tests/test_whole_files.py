# SPDX-License-Identifier: Apache-2.0
"""A file or folder appears complete, or everything stays as it was."""

import errno
import json
import os
import resource

import numpy as np
import pytest

from rfjax import whole_files
from rfjax.errors import StorageError, needing_room


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


def written_by_python(path):
    path.write_bytes(bytes(2**20))


def written_by_tensorstore(path):
    import tensorstore

    store = {"driver": "file", "path": f"{path.parent}/"}
    tensorstore.KvStore.open(store).result()[path.name] = bytes(2**20)


def written_by_safetensors(path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2**20, np.uint8)}, path)


@pytest.mark.parametrize(
    "write", [written_by_python, written_by_tensorstore, written_by_safetensors]
)
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_disk_without_room_is_one_line_and_leaves_nothing(write, is_folder, tmp_path):
    """The real limit of file sizes, as each library reports it."""
    path = tmp_path / "result.bin"

    def fill():
        if is_folder:
            with whole_files.new_folder(path, num_bytes=2**21) as folder:
                write(folder / "a.bin")
        else:
            with whole_files.replacing(path) as partial:
                write(partial)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = r" \(2\.1 MB\)" if is_folder else ""
    message = (
        rf"{tmp_path} must have room for result\.bin{size}, got files of up to "
        r"65\.5 kB \(File too large\); raise the limit \(ulimit -f\), and run the same"
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(StorageError, match=message) as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value, OSError)
    assert not list(tmp_path.iterdir())
    fill()  # control: there is room now
    assert path.exists()


def test_what_is_not_the_disks_fault_stays_as_it_is(tmp_path):
    with pytest.raises(KeyError), needing_room("a", tmp_path):
        raise KeyError("No space between words")
    with pytest.raises(PermissionError), needing_room("a", tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
