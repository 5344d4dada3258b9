# SPDX-License-Identifier: Apache-2.0
"""Which files are read of what a folder holds, and what is said of all others."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from rfjax.export import weight_files

STEM = "diffusion_pytorch_model"
INDEX = f"{STEM}.safetensors.index.json"


def write(folder, **files):
    """Files of tensors, each with its own number in it."""
    for name, tensors in files.items():
        save_file(
            {
                tensor: np.full(2, value, np.float32)
                for tensor, value in tensors.items()
            },
            folder / f"{name}.safetensors",
        )


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))


def read(source, layout="diffusers"):
    """Name -> (file, first number)."""
    tensors, _ = weight_files.open_files(source, layout=layout)
    return {
        name: (
            each.path.name,
            np.fromfile(each.path, np.float32, 1, offset=each.start).item(),
        )
        for name, each in tensors.items()
    }


def refusal(source):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (its text is returned)
        read(source)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- Shards and their index --------------------------------------------------------


def test_the_index_decides_between_shards_with_the_same_name(tmp_path):
    write(tmp_path, one={"a": 1, "b": 2}, three={"a": 3, "c": 4})
    for chosen, value in (("one", 1), ("three", 3)):
        files = {"a": chosen, "b": "one", "c": "three"}
        write_index(tmp_path, {n: f"{f}.safetensors" for n, f in files.items()})
        found = read(tmp_path)
        assert found["a"] == (f"{chosen}.safetensors", value)
        assert found["b"] == ("one.safetensors", 2)
        assert found["c"] == ("three.safetensors", 4)
    assert read(tmp_path / INDEX) == found  # the index itself is named
    write(tmp_path, **{STEM: {"a": 9}})
    assert read(tmp_path) == found


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one"}, "must list every tensor of its shards, and lacks b of one.safe"),
        ({"a": "one", "b": "one", "x": "one"}, "one.safetensors must hold x, as"),
        ({"a": "one", "b": "one", "c": "two"}, "two.safetensors does not exist"),
    ],
)
def test_index_and_shards_that_contradict_each_other(tmp_path, weight_map, message):
    write(tmp_path, one={"a": 1, "b": 2})
    files = {name: f"{file}.safetensors" for name, file in weight_map.items()}
    write_index(tmp_path, files)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must have a weight_map, .* got none"),
        ("[]", "must hold a JSON object, got"),
        ('{"weight_map": {}}', r"must have a weight_map, .* got \{\}"),
        ('{"weight_map": ["a"]}', r"must have a weight_map, .* got \['a'\]"),
        ('{"weight_map": "one.safetensors"}', "got 'one.safetensors'"),
        ('{"weight_map": {"a": 3}}', "must name the file of every tensor, got 3 for a"),
        ('{"weight_map": {"a": ["one.safetensors"]}}', "file of every tensor, got"),
        ('{"weight_map": {"a": null}}', "every tensor, got None for a"),
        ('{"weight_map"', "must be JSON"),
        ("", "must be JSON"),
    ],
)
def test_index_of_the_wrong_form(tmp_path, text, message):
    write(tmp_path, one={"a": 1})
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"index.json .*{message}"):
        read(tmp_path)


def test_an_index_names_only_files_beside_it(tmp_path):
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for path in (folder, folder / "inner", elsewhere):
        path.mkdir()
        write(path, one={"a": 1})
    for name in (
        "../elsewhere/one.safetensors",
        str(elsewhere / "one.safetensors"),
        "inner/one.safetensors",
        "inner/../one.safetensors",
        "./one.safetensors",
        "..",
        "",
    ):
        write_index(folder, {"a": name})
        assert "must name files beside it, got" in refusal(folder)
    for name, target in (("out", elsewhere), ("in", folder)):
        link = folder / f"{name}.safetensors"
        link.symlink_to(target / "one.safetensors")
    write_index(folder, {"a": "out.safetensors"})
    assert "must name files beside it, got out.safetensors, a link to" in refusal(
        folder
    )
    write_index(folder, {"a": "in.safetensors"})
    assert read(folder)["a"][1] == 1
    write_index(folder, {"a": "one.safetensors"})
    assert read(folder)["a"][1] == 1


def test_links_of_the_hugging_face_cache_are_followed(tmp_path):
    model = tmp_path / "hub" / "models--x"
    folder = model / "snapshots" / "1f2e" / "transformer"
    folder.mkdir(parents=True)
    (model / "blobs").mkdir()
    write(model / "blobs", abc={"a": 1})
    (folder / "one.safetensors").symlink_to("../../../blobs/abc.safetensors")
    write_index(folder, {"a": "one.safetensors"})
    assert read(folder)["a"][1] == 1
    (folder / "one.safetensors").unlink()
    (folder / "one.safetensors").symlink_to(tmp_path / "hub" / "abc.safetensors")
    write(tmp_path / "hub", abc={"a": 1})
    assert "a link to" in refusal(folder)


def test_shards_without_an_index(tmp_path):
    first, second = (f"{STEM}-0000{i}-of-00002" for i in (1, 2))
    write(tmp_path, **{first: {"a": 1}})
    assert f"must hold all 2 shards of its weights, got {first}" in refusal(tmp_path)
    write(tmp_path, **{second: {"b": 2}})
    found = read(tmp_path)
    assert found == {
        "a": (f"{first}.safetensors", 1),
        "b": (f"{second}.safetensors", 2),
    }
    write(tmp_path, **{second: {"b": 2, "a": 3}})
    assert f"{first}.safetensors both hold a, and no index says" in refusal(tmp_path)


# -- Variants ----------------------------------------------------------------------


def test_variants(tmp_path):
    write(tmp_path, **{f"{STEM}.fp16": {"a": 16}})
    assert read(tmp_path)["a"] == (f"{STEM}.fp16.safetensors", 16)
    write(tmp_path, **{f"{STEM}.bf16": {"a": 17}})
    assert f"got {STEM}.bf16.safetensors, {STEM}.fp16.safetens" in refusal(tmp_path)
    assert read(tmp_path / f"{STEM}.bf16.safetensors")["a"][1] == 17
    write(tmp_path, **{STEM: {"a": 32}})
    assert read(tmp_path)["a"] == (f"{STEM}.safetensors", 32)


@pytest.mark.parametrize(
    "names", ["{stem}.fp16-0000{i}-of-00002", "{stem}-0000{i}-of-00002.fp16"]
)
@pytest.mark.parametrize(
    "index",
    [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16.safetensors.index.json"],
)
def test_shards_of_a_variant(tmp_path, names, index):
    first, second = (names.format(stem=STEM, i=i) for i in (1, 2))
    write(tmp_path, **{first: {"a": 1, "b": 7}, second: {"b": 2}})
    weight_map = {"a": f"{first}.safetensors", "b": f"{second}.safetensors"}
    write_index(tmp_path, weight_map, name=index)
    assert read(tmp_path)["b"][1] == 2
    (tmp_path / index).unlink()
    assert "both hold b" in refusal(tmp_path)
    write(tmp_path, **{STEM: {"a": 32}})
    assert read(tmp_path)["a"][1] == 32


def test_dots_in_other_names_are_no_variants(tmp_path):
    write(tmp_path, **{"sd3.5_medium": {"a": 1}, "sd3.5_large": {"a": 2}})
    assert "got sd3.5_large.safetensors, sd3.5_medium.safetens" in refusal(tmp_path)


# -- Files that are no safetensors -------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"truncated or damaged \(it is empty\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Log in</html>", "web page.* needs a login"),
        (b"Entry not found", "is the text 'Entry not found'; download it again"),
        (b'{"error": "gated"}', "JSON file, not weights"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF file.* quantised in blocks"),
        (pickle.dumps({"a": 1}), "is a pickle, which can run code"),
        (b"PK\x03\x04" + bytes(64), "is a pickle, which can run code"),
        (save({"a": np.zeros(9, np.float32)})[:-1], r"\d\d of \d\d+ bytes are there"),
        (save({"a": np.zeros(9, np.float32)}) + b"\0", "truncated or damaged"),
        (bytes(range(129, 250)), "truncated or damaged"),
    ],
)
def test_what_else_is_called_safetensors(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=f"must be a whole safetens.*{message}"):
            read(source)


@pytest.mark.parametrize("suffix", ["gguf", "GGUF", "ckpt", "PT", "bin"])
def test_other_suffixes(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"x")
    what = "GGUF" if suffix.lower() == "gguf" else "pickle"
    assert f"is a {what}" in refusal(path)
    assert f"is a {what}" in refusal(tmp_path)


def test_folders_of_other_kinds(tmp_path):
    (tmp_path / "unet").mkdir()
    assert "holds unet, a U-Net" in refusal(tmp_path)
    (tmp_path / "x.safetensors").mkdir()
    assert "must be a regular file" in refusal(tmp_path)
