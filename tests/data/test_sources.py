# SPDX-License-Identifier: Apache-2.0
"""Sources of picture files: every layout gives what the library of its format reads."""

import csv
import gc
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rfjax import schema
from rfjax.data.encode import EncodeConfig
from rfjax.data.sources import columns
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.errors import MissingFileError, UserError


def make(**fields):
    """A source from the fields of its config, as a file has them."""
    return schema.build(EncodeConfig, {"name": "n", "source": fields}).source.make()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def captions(source):
    return [source.entry(index).captions[0] for index in range(len(source))]


def broken(source):
    """What is wrong with each picture that cannot be read, by its number."""
    problems = {}
    for index in range(len(source)):
        try:
            source.picture(index)
        except BrokenPicture as error:
            problems[index] = str(error)
    return problems


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# -- All layouts alike ---------------------------------------------------------------

LAYOUTS = "image_folder jsonl parquet webdataset saved_dataset tfds_images".split()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pictures(layout, picture_sets, pictures):
    source = make(**picture_sets[layout])
    assert len(source) == pictures.count
    assert source.caption_kinds == ("original", "synthetic")
    # Any order, as the filters and shards of another process ask for them.
    for number in (3, 0, 6, 5, 4, 1, 2, 3):
        entry, row = source.entry(number), pictures.row(number)
        assert entry.captions == (row["caption"], row["synthetic"])
        assert (entry.licence, entry.attribution) == (row["licence"], row["author"])
        assert entry.annotation == {"score": row["score"]}
        assert entry.columns["score"] == row["score"]
        assert entry.split == ""
        picture = source.picture(number)
        np.testing.assert_array_equal(picture, pixels(pictures.file(number)))
        assert source.size(number) == picture.shape[:2]
    for number in (-1, pictures.count):
        with pytest.raises(IndexError):
            source.entry(number)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_do_not_depend_on_the_place(layout, picture_sets, tmp_path):
    """What is encoded from a copy elsewhere has the same records."""
    config = dict(picture_sets[layout])
    field = "path" if "path" in config else "paths"
    old = config[field] if field == "path" else config[field][0]
    paths = (Path(old), *Path(old).parents)
    parent = next(path for path in paths if path.name == layout)
    shutil.copytree(parent, tmp_path / "moved")
    new = old.replace(str(parent), str(tmp_path / "moved"))
    moved = make(**config | {field: new if field == "path" else [new]})
    source = make(**config)
    for index in range(len(source)):
        assert moved.entry(index) == source.entry(index)
        assert str(parent) not in source.entry(index).key


def test_a_missing_column_is_named_with_those_that_exist(picture_sets):
    for layout in LAYOUTS:
        config = picture_sets[layout]
        for field in ("licence", "attribution", "split"):
            with pytest.raises(
                UserError, match=rf"columns\.{field} .*score.*'nothing'"
            ):
                make(**config | {"columns": {field: "nothing"}})
        with pytest.raises(
            UserError, match=r"captions .*got 'captoin'; did you mean caption"
        ):
            make(**config | {"columns": {"captions": ["captoin"]}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"captions": ["a", "b"]}, "caption_kinds must name each of the 2 captions"),
        ({"caption_kinds": ["my own"]}, "must be Python identifiers"),
        (
            {"captions": ["a", "b"], "caption_kinds": ["x", "x"]},
            "identifiers that differ",
        ),
        ({"captions": [""]}, r"source.columns.captions.* must not be empty"),
        ({"licence": " "}, "source.columns.licence must not be empty"),
    ],
)
def test_wrong_columns(fields, message):
    with pytest.raises(UserError, match=message):
        columns.Columns(
            **{
                name: tuple(v) if isinstance(v, list) else v
                for name, v in fields.items()
            }
        )


@pytest.mark.parametrize(
    "kind", ["image_folder", "table", "webdataset", "saved_dataset", "tfds_images"]
)
def test_what_is_not_there(kind, tmp_path):
    field = "paths" if kind in ("table", "webdataset") else "path"
    for path in (tmp_path / "nothing", tmp_path / "no*.tar"):
        value = [str(path)] if field == "paths" else str(path)
        with pytest.raises(
            MissingFileError, match=f"source.{field} must .*{path.name[:3]}"
        ):
            make(kind=kind, **{field: value})
    (tmp_path / "empty").mkdir()
    value = [str(tmp_path / "empty")] if field == "paths" else str(tmp_path / "empty")
    with pytest.raises(UserError, match="empty"):
        make(kind=kind, **{field: value})
    with pytest.raises(UserError, match=r"source\.background\[0\].* 0 and 255"):
        make(kind=kind, background=[256, 0, 0], **{field: value})
    with pytest.raises(UserError, match=f"source.{field}"):
        make(kind=kind, **{field: ["gs://a"] if field == "paths" else "gs://a"})


# -- Image folders -------------------------------------------------------------------


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)


def test_texts_beside_pictures(tmp_path, pictures):
    """Endings in any case, marks, line ends; and everything that has no partner."""
    png = pictures.file(0)
    write_files(
        tmp_path,
        {
            "b.PNG": png,
            "b.TXT": "\ufeffa fox\r\n",
            "a.jpg": png,
            "a.caption": "a cat",
            "a.json": json.dumps({"score": 3, "tags": ["x"]}),
            "sub.dir/c.d.png": png,
            "sub.dir/c.d.txt": " zwei\nZeilen ",
            "alone.webp": png,
            "orphan.txt": "nothing to see",
            "latin.png": png,
            "latin.txt": "caf\u00e9".encode("latin-1"),
            "wrong.png": png,
            "wrong.json": "{broken",
            "notes.pdf": "",
            ".hidden.png": png,
            ".git/x.png": png,
            "__MACOSX/y.png": png,
        },
    )
    source = make(kind="image_folder", path=str(tmp_path))
    keys = [source.entry(index).key for index in range(len(source))]
    assert keys == [
        *("a.jpg", "alone.webp", "b.PNG", "latin.png", "wrong.png"),
        "sub.dir/c.d.png",
    ]
    # The first of txt, caption ... that exists.
    assert captions(source) == ["", "", "a fox", "", "", "zwei\nZeilen"]
    assert source.entry(0).columns == {
        **{"folder": "", "stem": "a", "caption": "a cat", "score": 3, "tags": ["x"]}
    }
    problems = broken(source)
    assert set(problems) == {3, 4}
    assert "file txt of picture latin.png must be in UTF-8" in problems[3]
    assert "file json of picture wrong.png must be JSON" in problems[4]
    assert source.notes == (
        "pictures with no text beside them: 1 (alone.webp)",
        "texts beside no picture: 1 (orphan.txt)",
        "files that are neither pictures nor texts: 1 (notes.pdf)",
    )
    sentences = make(
        kind="image_folder",
        path=str(tmp_path),
        columns={"captions": ["caption"], "annotation": ["tags.0"]},
    )
    assert captions(sentences)[0] == "a cat"
    assert sentences.entry(0).annotation == {"tags.0": "x"}
    folders = make(
        kind="image_folder", path=str(tmp_path), columns={"captions": ["folder"]}
    )
    assert captions(folders)[5] == "sub.dir"


def test_the_order_of_a_folder_is_not_that_of_the_disk(tmp_path, pictures):
    names = [f"{number:03d}.png" for number in np.random.default_rng(0).permutation(40)]
    write_files(tmp_path, {name: pictures.file(0) for name in names})
    write_files(tmp_path, {"z.png": pictures.file(0), "z.txt": "z"})
    source = make(kind="image_folder", path=str(tmp_path))
    keys = [source.entry(index).key for index in range(len(source))]
    assert keys == [*sorted(names), "z.png"]


def test_links_in_a_folder(tmp_path, pictures):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    write_files(folder, {"a.png": pictures.file(0), "a.txt": "a"})
    write_files(elsewhere, {"b.png": pictures.file(1), "b.txt": "b"})
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    source = make(kind="image_folder", path=str(folder))
    keys = [source.entry(index).key for index in range(len(source))]
    assert keys == ["a.png", "gone.png", "again/b.png"]
    assert "No such file or directory" in broken(source)[1]


def test_names_that_are_no_utf_8(tmp_path, pictures):
    name = bytes(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(name + b".png")).write_bytes(pictures.file(0))
    Path(os.fsdecode(name + b".txt")).write_text("a caf\u00e9")
    source = make(kind="image_folder", path=str(tmp_path))
    assert source.entry(0).key == r"caf\xe9.png"
    assert captions(source) == ["a caf\u00e9"]
    np.testing.assert_array_equal(source.picture(0), pixels(pictures.file(0)))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_of_hugging_face(tmp_path, pictures, suffix):
    """metadata files, as the library `datasets` itself reads them."""
    import datasets

    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        files = {f"{split}/x{n}.png": pictures.file(n) for n in numbers}
        write_files(tmp_path, files)
        frame = pd.DataFrame(
            {
                "file_name": [f"x{n}.png" for n in numbers],
                "text": [f"picture, {n}" for n in numbers],
            }
        )
        path = tmp_path / split / f"metadata.{suffix}"
        if suffix == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        elif suffix == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / ".cache")
    )
    gc.collect()  # it leaves the file open
    source = make(kind="image_folder", path=str(tmp_path), splits_by_folder=True)
    expected = [
        (row["text"], {"train": "train", "test": "validation"}[split], row["image"])
        for split in ("test", "train")
        for row in theirs[split]
    ]
    assert len(source) == len(expected) == 5
    for index, (text, split, image) in enumerate(expected):
        assert source.entry(index).captions == (text,)
        assert source.entry(index).split == split
        np.testing.assert_array_equal(source.picture(index), np.asarray(image))
    assert source.notes == ()
    # A picture that is not listed is named, and a row without picture is broken.
    write_files(tmp_path, {"train/more.png": pictures.file(5)})
    (tmp_path / "train" / "x2.png").unlink()
    source = make(kind="image_folder", path=str(tmp_path))
    assert source.notes == (
        "pictures in no metadata.jsonl or the like: 1 (train/more.png)",
    )
    assert "No such file" in broken(source)[4]


def test_metadata_that_lists_no_pictures(tmp_path, pictures):
    write_files(tmp_path, {"a.png": pictures.file(0), "metadata.csv": "id,n\n1,2\n"})
    with pytest.raises(UserError, match=r"has id, n, got 'file_name'.*rename one"):
        make(kind="image_folder", path=str(tmp_path))


def test_folders_that_name_no_split(tmp_path, pictures):
    write_files(tmp_path, {"train/a.png": pictures.file(0), "train/a.txt": "a"})
    write_files(tmp_path, {"misc/b.png": pictures.file(0), "misc/b.txt": "b"})
    source = make(kind="image_folder", path=str(tmp_path), splits_by_folder=True)
    assert [source.entry(i).split for i in range(2)] == ["", "train"]
    assert "one of the splits train, training, validation" in broken(source)[0]
    source = make(kind="image_folder", path=str(tmp_path))
    assert [source.entry(i).split for i in range(2)] == ["", ""]


# -- Tables --------------------------------------------------------------------------


def test_csv_is_read_as_the_csv_module_reads_it(tmp_path, pictures):
    """Quotes, commas and line breaks in fields; marks; blank lines; both line ends."""
    write_files(tmp_path, {"p.png": pictures.file(0)})
    texts = [
        *("plain", 'with "quotes"', "with, comma", "line\nbreak", "line\r\nbreak"),
        *("\u00fcml\u00e4ut \u4e2d", "", '5" nail', "007"),
    ]
    rows = [{"path": "p.png", "caption": text, "n": i} for i, text in enumerate(texts)]
    for name, delimiter, line_end in (("a.csv", ",", "\n"), ("a.TSV", "\t", "\r\n")):
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer,
            ["path", "caption", "n"],
            delimiter=delimiter,
            lineterminator=line_end,
        )
        writer.writeheader()
        writer.writerows(rows)
        text = "\ufeff" + buffer.getvalue() + line_end * 2
        (tmp_path / name).write_bytes(text.encode())
        source = make(kind="table", paths=[str(tmp_path / name)])
        expected = list(csv.DictReader(io.StringIO(text[1:], ""), delimiter=delimiter))
        assert len(source) == len(expected) == len(texts)
        for index in (8, 3, 4, 0, 1, 2, 5, 6, 7):
            assert source.entry(index).columns == expected[index]
            assert source.entry(index).captions == (texts[index].strip(),)
        assert source.entry(3).key == f"{name}:3"
        assert not broken(source)


def test_rows_that_cannot_be_read_break_no_others(tmp_path, pictures):
    write_files(tmp_path, {"p.png": pictures.file(0)})
    lines = [
        b'{"image": "p.png", "text": "good"}',
        b"{broken",
        b"[1, 2]",
        b'{"image": "p.png", "text": "caf\xe9"}',
        b'{"image": "p.png", "text": "\\ud800"}',
        b'{"image": "p.png"}',
        b'{"image": null, "text": "t"}',
        b'{"image": "https://example.org/p.png", "text": "t"}',
        b'{"image": "missing.png", "text": "t"}',
        b'{"image": "p.png", "text": 7}',
        b'{"image": "p.png", "text": ["several", "texts"]}',
        b'{"image": "' + str(tmp_path / "p.png").encode() + b'", "text": "last"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n\r\n".join(lines) + b"\n  \n")
    source = make(kind="table", paths=[str(tmp_path / "t.jsonl")])
    assert captions(source) == [
        *("good", "", "", "", "", "", "t", "t", "t", "", "", "last")
    ]
    problems = broken(source)
    for index in range(len(source)):
        known = source.entry(index).broken  # of the row, not of its picture
        assert known == (problems[index] if index in (1, 2, 3, 4, 9, 10) else "")
    for index, words in {
        1: "row t.jsonl:1 must be a JSON object on one line",
        2: "must be a JSON object",
        3: "row t.jsonl:3 must be in UTF-8",
        4: "text of picture t.jsonl:4 must be valid text",
        6: "must be a path or the bytes of a file, got 'None'",
        7: "download the pictures first",
        8: "No such file or directory",
        9: "text of picture t.jsonl:9 must be text, got '7'; name another column",
        10: "name one of its parts, as text.0",
    }.items():
        assert words in problems.pop(index)
    assert not problems
    several = make(
        kind="table",
        paths=[str(tmp_path / "t.jsonl")],
        columns={"captions": ["text.1"]},
    )
    assert captions(several)[10] == "texts"


def test_csv_rows_of_other_lengths(tmp_path, pictures):
    write_files(tmp_path, {"p.png": pictures.file(0)})
    (tmp_path / "t.csv").write_text("path,text\np.png,a\np.png,b,c\np.png\np.png,d\n")
    source = make(kind="table", paths=[str(tmp_path / "t.csv")])
    assert captions(source) == ["a", "", "", "d"]
    assert "must have 2 fields, as the header has, got 3" in broken(source)[1]
    assert set(broken(source)) == {1, 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "must begin with a row of column names"),
        ("t.csv", b"path,text,text\n", "column names that differ"),
        ("t.csv", "path,text\n".encode("utf-16"), "must be in UTF-8, got UTF-16"),
        ("t.csv", b"path,text\n", "must hold at least one picture"),
        ("t.csv", b'path,text\na,"' + b"x\n" * 99_999, "field larger than field limit"),
        ("t.jsonl", b"", "must hold at least one picture, got none"),
        ("t.jsonl", b'{"a": 1}', "source.picture must be a column of .*has a, got ''"),
        ("t.parquet", b"PAR1 nonsense", "must be a whole parquet file"),
        ("t.csv.gz", b"", r"must name files that end in \.jsonl"),
        ("t.json", b"[]", r"must name files that end in \.jsonl"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        make(kind="table", paths=[str(tmp_path / name)])


def test_relative_paths_start_at_the_table_or_at_a_folder(tmp_path, pictures):
    write_files(tmp_path, {"pictures/p.png": pictures.file(0)})
    write_files(
        tmp_path, {"tables/t.jsonl": json.dumps({"image": "p.png", "text": ""})}
    )
    write_files(
        tmp_path,
        {"tables/u.jsonl": json.dumps({"image": "../pictures/p.png", "text": ""})},
    )
    t, u = (str(tmp_path / "tables" / name) for name in ("t.jsonl", "u.jsonl"))
    assert "No such file" in broken(make(kind="table", paths=[t]))[0]
    assert not broken(make(kind="table", paths=[t], folder=str(tmp_path / "pictures")))
    assert not broken(make(kind="table", paths=[u]))


def test_several_tables_and_patterns(tmp_path, pictures):
    for name in ("b", "a", "part-10", "part-9", "[x]"):
        row = {"image": pictures.file(0), "text": name}
        frame = pd.DataFrame([row])
        frame.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "none.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())

    def names(*patterns):
        paths = [str(tmp_path / f"{pattern}.parquet") for pattern in patterns]
        return captions(make(kind="table", paths=paths))

    assert names("part-*") == ["part-10", "part-9"]
    assert names("part-{9..10}", "a") == ["part-9", "part-10", "a"]
    assert names("{b,a}", "a") == ["b", "a"]
    assert names("[x]") == ["[x]"]
    for pattern, message in (
        ("c*", "which matches none"),
        ("part-{9..11}", "part-11.parquet"),
        ("part-{9..11", "part-{9..11"),
    ):
        with pytest.raises(UserError, match=message):
            names(pattern)
    with pytest.raises(UserError, match="at least one file"):
        make(kind="table", paths=[])


def test_parquet_of_hugging_face_and_binary_captions(tmp_path, pictures):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "photo": [
                {"bytes": pictures.file(n), "path": f"{n}.png"} for n in range(5)
            ],
            "mask": [{"bytes": b"m" * 100, "path": None}] * 5,
            "alt": pa.array([f"text {n}".encode() for n in range(5)], pa.binary()),
            "score": [0.5, None, float("nan"), 1.0, 2.0],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = make(
        kind="table",
        paths=[str(tmp_path / "t.parquet")],
        picture="photo",
        columns={"captions": ["alt"], "annotation": ["score"]},
    )
    assert captions(source) == [f"text {n}" for n in range(5)]
    np.testing.assert_array_equal(source.picture(4), pixels(pictures.file(4)))
    assert "mask" not in source.entry(0).columns
    assert [source.entry(n).annotation["score"] for n in range(3)] == [0.5, None, None]
    direct = make(
        kind="table",
        paths=[str(tmp_path / "t.parquet")],
        picture="photo.bytes",
        columns={"captions": ["alt"]},
    )
    np.testing.assert_array_equal(direct.picture(3), pixels(pictures.file(3)))


def test_annotations_can_always_be_stored(tmp_path, pictures):
    """As JSON in UTF-8, whatever a column holds."""
    write_files(tmp_path, {"p.png": pictures.file(0)})
    values = ['"\\ud800"', "NaN", "[1, NaN]", "1e400", '{"a": 1}', "7"]
    lines = [f'{{"image": "p.png", "text": "t", "id": {value}}}' for value in values]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = make(
        kind="table", paths=[str(tmp_path / "t.jsonl")], columns={"annotation": ["id"]}
    )
    found = [source.entry(index).annotation["id"] for index in range(6)]
    assert found == [r"\ud800", None, "[1, nan]", None, {"a": 1}, 7]
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def test_splits_of_a_column(tmp_path, pictures):
    write_files(tmp_path, {"p.png": pictures.file(0)})
    splits = ["train", "val", "TEST", "", "restval"]
    rows = [{"image": "p.png", "text": "t", "split": split} for split in splits]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = make(
        kind="table", paths=[str(tmp_path / "t.jsonl")], columns={"split": "split"}
    )
    found = [source.entry(index).split for index in range(5)]
    assert found == ["train", "validation", "validation", "", ""]
    assert "got 'restval'" in broken(source)[4]


# -- WebDataset ----------------------------------------------------------------------


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tars_give_what_webdataset_gives(tmp_path, pictures):
    import webdataset

    long = "a" * 150
    files = [
        ("./x/1.png", pictures.file(1)),
        ("./x/1.txt", b"one\n"),
        ("./x/1.JSON", json.dumps({"author": "me", "txt": "not this"}).encode()),
        (f"{long}/{long}.png", pictures.file(2)),
        (f"{long}/{long}.txt", "zw\u00f6lf".encode()),
        ("3.a.mask.png", b"mask"),
        ("3.png", pictures.file(3)),
        ("3.txt", b"three"),
        ("__meta__", b"{}"),
    ]
    write_tar(tmp_path / "a.tar", files)
    source = make(
        kind="webdataset",
        paths=[str(tmp_path / "a.tar")],
        columns={"attribution": "author"},
    )
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    gc.collect()  # it leaves the file open
    assert len(source) == len(theirs) == 3
    for index, sample in enumerate(theirs):
        assert source.entry(index).key == f"a.tar/{sample['__key__']}"
        assert captions(source)[index] == sample["txt"].decode().strip()
        np.testing.assert_array_equal(source.picture(index), pixels(sample["png"]))
    assert source.entry(0).attribution == "me"


def test_samples_of_a_tar_that_are_no_pairs(tmp_path, pictures):
    png = pictures.file(0)
    files = [
        *(("1.png", png), ("2.txt", b"no picture"), ("3.png", png), ("3.jpg", png)),
        *(("4.png", png), ("4.txt", b"a"), ("4.txt", b"b"), ("5.png", png[:40])),
        *(("README", b""), (".6.png", png), ("1.txt", b"late"), ("._7.png", b"")),
    ]
    write_tar(tmp_path / "a.tar", files)
    source = make(kind="webdataset", paths=[str(tmp_path / "a.tar")])
    assert captions(source) == ["late", "no picture", "", "", ""]
    problems = broken(source)
    assert "picture a.tar/2 must be one file of its sample, got txt" in problems[1]
    assert "got png, jpg; name its ending in source.picture" in problems[2]
    assert "must have one file of each ending, got png, txt, txt" in problems[3]
    assert "picture a.tar/5 must be a whole file" in problems[4]
    assert set(problems) == {1, 2, 3, 4}
    chosen = make(kind="webdataset", paths=[str(tmp_path / "a.tar")], picture=".JPG")
    assert set(broken(chosen)) == {0, 1, 3, 4}


@pytest.mark.parametrize("damage", ["gz", "half", "text"])
def test_files_that_are_no_tars(tmp_path, pictures, damage):
    files = [(f"{n}.png", pictures.file(n)) for n in range(5)]
    path = tmp_path / "a.tar"
    write_tar(path, files, "w:gz" if damage == "gz" else "w")
    if damage == "half":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("<html>404</html>" * 100)
    message = "unpack it once" if damage == "gz" else "copy it again"
    with pytest.raises(UserError, match=f"a.tar must be a whole tar, .*{message}"):
        make(kind="webdataset", paths=[str(path)])


def test_headers_of_a_tar_are_read_once(tmp_path, pictures, monkeypatch):
    path = tmp_path / "a.tar"
    write_tar(path, [("1.png", pictures.file(1)), ("1.txt", b"one")])
    make(kind="webdataset", paths=[str(path)])
    scanned = []
    opened = tarfile.open
    monkeypatch.setattr(
        tarfile, "open", lambda *a, **k: scanned.append(a) or opened(*a, **k)
    )
    source = make(kind="webdataset", paths=[str(path)])
    assert not scanned
    np.testing.assert_array_equal(source.picture(0), pixels(pictures.file(1)))
    # Another content under the name is read again; so is all where nothing is kept.
    write_tar(path, [("2.png", pictures.file(2)), ("2.txt", b"two")])
    assert captions(make(kind="webdataset", paths=[str(path)])) == ["two"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    scanned.clear()
    assert captions(make(kind="webdataset", paths=[str(path)])) == ["two"]
    assert scanned


@pytest.mark.parametrize("kind", ["webdataset", "table"])
def test_files_that_change_while_they_are_read(tmp_path, pictures, kind):
    """A job ends, rather than take what is left for the records that it planned."""
    path = tmp_path / ("a.tar" if kind == "webdataset" else "t.jsonl")
    if kind == "webdataset":
        write_tar(path, [("1.png", pictures.file(1)), ("1.txt", b"x" * 3000)])
    else:
        write_files(tmp_path, {"t.jsonl": '{"image": "p.png", "text": "t"}'})
    source = make(kind=kind, paths=[str(path)])
    assert captions(source)[0]
    if kind == "webdataset":
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(UserError, match="must stay as it was, got a shorter file"):
            source.entry(0)
    path.unlink()
    with pytest.raises(MissingFileError, match=f"must stay while .*{path.name}"):
        source.entry(0)


# -- Hugging Face --------------------------------------------------------------------


def test_saved_data_sets(tmp_path, pictures):
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["a cat", "a dog"]),
            "texts": datasets.List(datasets.Value("string")),
        }
    )

    def split_of(numbers):
        rows = {
            "picture": [{"bytes": pictures.file(n), "path": None} for n in numbers],
            "label": [n % 2 for n in numbers],
            "texts": [[f"first {n}", f"second {n}"] for n in numbers],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    both = datasets.DatasetDict(train=split_of(range(4)), test=split_of((4, 5)))
    both["train"] = both["train"].select([3, 1, 0])  # an index of rows
    both.save_to_disk(tmp_path / "both")
    theirs = datasets.load_from_disk(tmp_path / "both")
    config = {"kind": "saved_dataset", "path": str(tmp_path / "both")}
    source = make(**config)
    assert len(source) == 5
    rows = [(split, row) for split, part in theirs.items() for row in part]
    for index, (split, row) in enumerate(rows):
        entry = source.entry(index)
        assert entry.captions == (["a cat", "a dog"][row["label"]],)
        assert entry.split == {"train": "train", "test": "validation"}[split]
        np.testing.assert_array_equal(source.picture(index), np.asarray(row["picture"]))
    assert source.entry(0).columns["texts"] == ["first 3", "second 3"]
    assert source.entry(3).key == "test:0"
    second = make(**config, splits=["test"], columns={"captions": ["texts.1"]})
    assert captions(second) == ["second 4", "second 5"]
    assert [second.entry(i).split for i in range(2)] == ["", ""]
    with pytest.raises(UserError, match="which has train, test, got 'dev'"):
        make(**config, splits=["dev"])
    with pytest.raises(UserError, match="source.picture must be a column .*'photo'"):
        make(**config, picture="photo")
    datasets.DatasetDict(a=both["train"], b=both["test"]).save_to_disk(tmp_path / "ab")
    with pytest.raises(
        UserError, match="source.splits must be among train, .*got a, b"
    ):
        make(kind="saved_dataset", path=str(tmp_path / "ab"))
    assert len(make(kind="saved_dataset", path=str(tmp_path / "ab"), splits=["b"])) == 2
    datasets.DatasetDict().save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="got no split in"):
        make(kind="saved_dataset", path=str(tmp_path / "none"))
    file = next((tmp_path / "both" / "test").glob("*.arrow"))
    assert captions(make(kind="saved_dataset", path=str(file))) == ["a cat", "a dog"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="must be what save_to_disk of datasets wrote"):
        make(**config)


# -- TFDS ----------------------------------------------------------------------------


def write_tfrecords(path, records):
    """The layout of TFRecord; checksums are not looked at."""
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + b"crcl" + record + b"crcd")


def test_labels_and_sequences_of_tfds_in_tfrecord_files(tmp_path, pictures):
    from tensorflow_datasets import features as tfds_features

    features = tfds_features.FeaturesDict(
        {
            "image": tfds_features.Image(shape=(None, None, 3)),
            "label": tfds_features.ClassLabel(names=["abyssinian", "beagle"]),
            "captions": tfds_features.Sequence(
                {"id": np.int64, "text": tfds_features.Text()}
            ),
        }
    )

    def record(number):
        texts = [{"id": n, "text": f"text {number}.{n}"} for n in range(2)]
        image = io.BytesIO(pictures.file(number))
        row = {"image": image, "label": number % 2, "captions": texts}
        return features.serialize_example(features.encode_example(row))

    for split, numbers in {"train": (0, 1, 2), "validation": (3,)}.items():
        name = f"picture_set-{split}.tfrecord-00000-of-00001"
        write_tfrecords(tmp_path / name, map(record, numbers))
    pictures.write_tfds_metadata(
        tmp_path, features, {"train": [3], "validation": [1]}, "tfrecord"
    )
    config = {"kind": "tfds_images", "path": str(tmp_path)}
    source = make(**config)
    assert captions(source) == ["abyssinian", "beagle", "abyssinian", "beagle"]
    splits = [source.entry(index).split for index in range(4)]
    assert splits == ["train"] * 3 + ["validation"]
    np.testing.assert_array_equal(source.picture(3), pixels(pictures.file(3)))
    texts = make(**config, splits=["train"], columns={"captions": ["captions.text.1"]})
    assert captions(texts) == ["text 0.1", "text 1.1", "text 2.1"]
    with pytest.raises(
        UserError, match="one of the Image features, image among captions, image, label"
    ):
        make(**config, picture="label")
    path = tmp_path / "picture_set-train.tfrecord-00000-of-00001"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match="ends within a record"):
        make(**config)
    path.unlink()
    with pytest.raises(UserError, match="must have its file"):
        make(**config)


def test_tfds_reads_its_own_files_alike(picture_sets):
    import tensorflow_datasets as tfds

    config = picture_sets["tfds_images"]
    builder = tfds.builder_from_directory(config["path"])
    theirs = builder.as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    source = make(**config)
    assert len(source) == len(theirs)
    for index in range(len(theirs)):
        assert source.entry(index).captions[0] == theirs[index]["caption"].decode()
        np.testing.assert_array_equal(
            source.picture(index), pixels(theirs[index]["image"])
        )
