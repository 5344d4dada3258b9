# SPDX-License-Identifier: Apache-2.0
"""A file or folder appears complete, or everything stays as it was."""

import contextlib
import errno
import json
import os
import resource
import socket
import subprocess
import sys

import numpy as np
import pytest

from rfjax import partial_files, run_folder, whole_files
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


def test_two_that_ask_at_once_whether_a_folder_is_free(tmp_path, monkeypatch):
    """As shares of an encoding that start together: neither is a writer."""
    try_it, met = partial_files.new_file, []

    @contextlib.contextmanager
    def meanwhile(path):
        with try_it(path) as partial:
            monkeypatch.setattr(partial_files, "new_file", try_it)
            whole_files.check_free(tmp_path / "out", field="out")
            met.append(path)
            yield partial

    monkeypatch.setattr(partial_files, "new_file", meanwhile)
    whole_files.check_free(tmp_path / "out", field="out")
    assert met
    with whole_files.new_folder(tmp_path / "out"):
        with pytest.raises(ValueError, match="another process is writing now"):
            whole_files.check_free(tmp_path / "out", field="out")


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


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system of its own at a folder, and unmounts it at the end."""
    mounted = []

    def make(path, *options):
        if not path.exists():
            path.mkdir()
        command = ["mount", *(options or ("-t", "tmpfs", "none")), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(path)

    yield make
    for path in reversed(mounted):
        subprocess.run(["umount", path], check=True)


def fill(path):
    whole_files.check_free(path, field="out")
    with whole_files.new_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")
        assert folder.name == path.resolve().name
        assert not (path / "b.txt").exists()


@pytest.mark.parametrize(
    "kind", ["link", "dangling", "chain", "mount", "bind", "there"]
)
def test_a_folder_that_is_there_is_filled_in_place(tmp_path, mount, kind):
    disk, path = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    target = {"dangling": disk / "new" / "data", "link": disk, "chain": disk}.get(kind)
    if kind == "mount":
        mount(path)
        (path / "lost+found").mkdir()
    elif kind == "bind":
        mount(path, "--bind", str(disk))
        assert not os.path.ismount(path), "control: Python does not see it"
    elif kind == "there":
        path.mkdir(mode=0o2770)
    elif kind == "chain":
        (tmp_path / "middle").symlink_to("disk")
        path.symlink_to("middle")
    else:
        path.symlink_to(target)
    before = path.lstat().st_ino, path.lstat().st_mode
    fill(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == before
    assert path.is_symlink() == (target is not None)
    found = {p.relative_to(path).as_posix() for p in path.rglob("*")} - {"lost+found"}
    assert found == {"b.txt", "sub", "sub/a.txt"}
    assert not list(tmp_path.rglob(".*"))
    with pytest.raises(ValueError, match=r"with b\.txt, sub"):
        whole_files.check_free(path, field="out")


def test_a_new_disk_holds_nothing_of_others(tmp_path):
    (tmp_path / "lost+found").mkdir()
    run_folder.check_claim(tmp_path, {})
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        run_folder.check_claim(tmp_path, {})


def test_a_report_on_a_mount_point_is_replaced_in_place(tmp_path, mount):
    mount(tmp_path / "out")
    for names in (("a.txt", "old.png"), ("a.txt", "new.png")):
        with whole_files.new_folder(
            tmp_path / "out", replaces=["a.txt", "old.png"]
        ) as folder:
            for name in names:
                (folder / name).write_text(str(names))
        assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {
            name: str(names) for name in names
        }


@pytest.mark.parametrize("check", ["check_free", "check_writable"])
@pytest.mark.parametrize(
    ("name", "message"),
    [  # of at most 220 bytes: the names of unfinished files are longer
        ("file/below", "must be in a folder, got .*file is none"),
        ("loop", "must be a .*, got .*/loop, a link to itself"),
        ("loop/below", "must be in a folder"),
        (
            "/proc/self/new/file",
            "must be where files can be made, got /proc/self/new/f",
        ),
        ("readonly/new/file", "must be where files can be made.*Read-only file sys"),
        ("x" * 300, "must have names of at most 220 bytes, got x+... of 300; short"),
        ("x/" * 2000, "must have a path of at most 3000 bytes"),
        ("x" * 240, "must have names of at most 220 bytes, got xxx"),
        (
            "new/" + "\N{SNOWMAN}" * 80 + "/file",
            "must have names of at most 220 bytes, got .* of 2",
        ),
    ],
    ids=lambda text: text[:12],
)
def test_what_cannot_be_made_is_refused_at_once(tmp_path, mount, check, name, message):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    if name.startswith("readonly"):
        mount(tmp_path / "readonly", "-t", "tmpfs", "-o", "ro", "none")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"^--out {message}"):
        getattr(whole_files, check)(tmp_path / name, field="--out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_a_mount_point_is_written(tmp_path, mount):
    for name in ("disk.json", "out.json"):
        (tmp_path / name).write_text("old and longer")
    mount(tmp_path / "out.json", "--bind", str(tmp_path / "disk.json"))
    whole_files.check_writable(tmp_path / "out.json", field="--json")
    whole_files.write_text(tmp_path / "out.json", "new")
    assert (tmp_path / "disk.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk.json", "out.json"]


def test_nodes_are_written_to_and_stay(tmp_path):
    """Standard output too, whatever it is: what was redirected stays whole."""
    script = """if True:
        import sys
        from rfjax import run_folder, whole_files
        print("before")
        for path in sys.argv[1:]:
            whole_files.check_writable(path, field="--json")
            whole_files.write_text(path, f"to {path}\\n")
        print("after")
    """
    paths = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "/dev/null"]
    (tmp_path / "link").symlink_to("/dev/stdout")
    command = [sys.executable, "-c", script, *paths]
    through = "".join(f"to {path}\n" for path in paths if path != "/dev/null")
    expected = f"before\n{through}after\n"
    with (tmp_path / "log").open("w+") as log:
        log.write("earlier\n")
        log.flush()
        subprocess.run(command, stdout=log, check=True, cwd=tmp_path)
    assert (tmp_path / "log").read_text() == "earlier\n" + expected
    piped = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    assert piped.stdout.decode() == expected
    assert {p.name for p in tmp_path.iterdir()} == {"link", "log"}
    if os.getuid() == 0:
        os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
        whole_files.write_text(tmp_path / "null", "gone")
        assert (tmp_path / "null").is_char_device()


def test_nodes_that_cannot_be_written_to_are_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server, (tmp_path / "r").open("w+") as both:
        server.bind(str(tmp_path / "socket"))
        read_end, write_end = os.pipe()
        refused = {
            str(tmp_path / "socket"): "a socket",
            "/dev/fd/9999": "must be an open file",
            f"/dev/fd/{both.fileno()}": "not",  # of this process, not of its user
            "-": "write /dev/stdout for standard output",
        }
        os.set_inheritable(read_end, True)
        os.set_inheritable(write_end, True)
        refused[f"/dev/fd/{read_end}"] = "must be open for writing"
        if os.getuid() == 0:
            os.mknod(tmp_path / "disk", 0o60666, os.makedev(7, 99))
            refused[str(tmp_path / "disk")] = "a disk"
        for path, message in refused.items():
            with pytest.raises(ValueError, match=f"^--json .*{message}"):
                whole_files.check_writable(path, field="--json")
        whole_files.check_writable(f"/dev/fd/{write_end}", field="--json")  # control
        os.close(read_end)
        os.close(write_end)


def test_a_stream_without_an_ending_takes_a_picture(tmp_path):
    from PIL import Image

    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.txt")
    whole_files.check_writable(tmp_path / "pipe", field="--out", suffixes=(".png",))
    for name in ("pipe.txt", "file"):
        with pytest.raises(ValueError, match=r"must end with \.png"):
            whole_files.check_writable(
                tmp_path / name, field="--out", suffixes=(".png",)
            )
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with whole_files.replacing(tmp_path / "pipe") as partial:
        Image.new("RGB", (2, 2)).save(partial)
    assert os.read(reader, 99).startswith(b"\x89PNG")
    os.close(reader)
