# SPDX-License-Identifier: Apache-2.0
"""The MLPerf FLUX layout, as Hugging Face's and PyArrow's own writers make it."""

import dataclasses
import hashlib
import io
import json
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from rfjax.data import shards
from rfjax.data.sources.mlperf_flux import MLPerfFluxConfig
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.data.verify import verify

pa = pytest.importorskip("pyarrow")
torch = pytest.importorskip("torch")

# As published; the fixtures are smaller, but for one row.
SHAPES = {
    "t5_encodings": (256, 4096),
    "clip_encodings": (768,),
    "mean": (16, 32, 32),
    "logvar": (16, 32, 32),
}
SMALL = {
    "t5_encodings": (6, 10),
    "clip_encodings": (5,),
    "mean": (4, 2, 3),
    "logvar": (4, 2, 3),
}


def draw(shapes, *, seed):
    """Column -> bfloat16 tensor, as an encoder gives them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in shapes.items()
    }


def serialise(array):
    """As the benchmark's preprocessing: the bits of bfloat16 in a .npy file."""
    if isinstance(array, torch.Tensor):
        array = array.view(torch.uint16).numpy()
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_stream(path, rows, **columns):
    """An Arrow IPC stream file of two record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"__key__": [f"{path.stem}{i}" for i in range(len(rows))]}
        | {
            name: pa.array([serialise(row[name]) for row in rows], pa.binary())
            for name in rows[0]
        }
        | columns
    )
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_empty(folder, shapes, *, seed=99):
    """The encodings of the empty caption, with a first dim of 1 as published."""
    folder.mkdir()
    empty = draw(shapes, seed=seed)
    for name in ("t5", "clip"):
        values = empty[f"{name}_encodings"][None].float().numpy()
        np.save(folder / f"{name}_empty.npy", values)
    return empty


@pytest.fixture
def download(tmp_path):
    """(Rows of both splits, the empty caption, the folder)."""
    rows = [draw(SMALL, seed=seed) for seed in range(8)]
    train, validation = tmp_path / "cc12m_preprocessed", tmp_path / "coco_preprocessed"
    write_stream(train / "data-00000-of-00002.arrow", rows[:3])
    write_stream(train / "data-00001-of-00002.arrow", rows[3:5])
    steps = pa.array([7, 0, 3], pa.int32())
    write_stream(validation / "data-00000-of-00001.arrow", rows[5:], timestep=steps)
    return rows, write_empty(tmp_path / "empty_encodings", SMALL), tmp_path


def bits(array):
    """The bits of a bfloat16 array or tensor."""
    if isinstance(array, torch.Tensor):
        return array.contiguous().view(torch.uint16).numpy()
    assert array.dtype == ml_dtypes.bfloat16
    return np.ascontiguousarray(array).view(np.uint16)


def test_every_value_is_kept(download):
    rows, empty, root = download
    source = MLPerfFluxConfig(str(root)).make()
    assert len(source) == 8
    for index, row in enumerate(rows):
        features = source.features(index)
        # As consumers of the data set compute it, in float32 and rounded once.
        mean, logvar = (
            row[name].float().permute(1, 2, 0) for name in ("mean", "logvar")
        )
        expected = {
            "latents": ((mean - 0.1159) * 0.3611).to(torch.bfloat16),
            "log_variance": (logvar + 2 * math.log(0.3611)).to(torch.bfloat16),
            "t5_context": row["t5_encodings"],
            "clip_l_pooled": row["clip_encodings"],
        }
        assert features.pop("t5_context_length") == 6
        assert set(features) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(bits(features[name]), bits(values))
        # A draw of the scaled posterior is the scaled draw: the benchmark's own order.
        noise = torch.randn(mean.shape)
        drawn = (mean + torch.exp(0.5 * logvar) * noise - 0.1159) * 0.3611
        ours = expected["latents"] + torch.exp(0.5 * expected["log_variance"]) * noise
        np.testing.assert_allclose(ours, drawn, atol=0.03)
    other = MLPerfFluxConfig(str(root), shift=0.0).make().features(0)
    assert not np.array_equal(other["latents"], source.features(0)["latents"])
    text = source.empty_caption()
    np.testing.assert_array_equal(bits(text["t5_context"]), bits(empty["t5_encodings"]))
    np.testing.assert_array_equal(
        bits(text["clip_l_pooled"]), bits(empty["clip_encodings"])
    )


def test_entries_and_what_the_manifest_will_say(download):
    _, _, root = download
    source = MLPerfFluxConfig(str(root)).make()
    entries = [source.entry(index) for index in range(len(source))]
    assert [entry.split for entry in entries] == ["train"] * 5 + ["validation"] * 3
    assert entries[4].key == "cc12m_preprocessed/data-00001-of-00002.arrow:1"
    assert entries[4].annotation == {"id": "data-00001-of-000021"}
    assert [e.annotation.get("timestep") for e in entries[5:]] == [7, 0, 3]
    assert len({entry.key for entry in entries}) == 8
    assert {entry.captions for entry in entries} == {("",)}
    latent = source.latent_spec
    assert (latent.shape, latent.has_variance) == ((2, 3, 4), True)
    assert (latent.codec_scale, latent.codec_shift) == (0.3611, 0.1159)
    t5, clip = source.encoder_specs
    assert (t5.length, t5.context_dim, t5.pooled_dim) == (6, 10, 0)
    assert (clip.context_dim, clip.pooled_dim) == (0, 5)
    with pytest.raises(IndexError):
        source.entry(8)


def test_a_row_of_the_published_size(tmp_path):
    row = draw(SHAPES, seed=0)
    for folder in ("cc12m_preprocessed", "coco_preprocessed"):
        write_stream(tmp_path / folder / "a.arrow", [row])
    write_empty(tmp_path / "empty_encodings", SHAPES)
    features = MLPerfFluxConfig(str(tmp_path)).make().features(0)
    assert features["latents"].shape == features["log_variance"].shape == (32, 32, 16)
    assert features["t5_context"].shape == (256, 4096)
    assert features["clip_l_pooled"].shape == (768,)
    assert sum(value.nbytes for value in features.values()) == 2_164_228


def test_what_hugging_face_saves_is_read(download, tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    rows, _, root = download
    saved = tmp_path_factory.mktemp("saved")
    datasets.Dataset.from_list(
        [{name: serialise(values) for name, values in row.items()} for row in rows[:5]]
    ).save_to_disk(saved / "train", num_shards=2)
    config = MLPerfFluxConfig(str(root), train=str(saved / "train"))
    source = config.make()
    assert len(source) == 8
    for index in range(5):
        np.testing.assert_array_equal(
            bits(source.features(index)["t5_context"]),
            bits(rows[index]["t5_encodings"]),
        )


def _truncate(root, size):
    path = root / "cc12m_preprocessed" / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:size])


def _drop_column(root):
    rows = [draw(SMALL, seed=0)]
    del rows[0]["logvar"]
    write_stream(root / "coco_preprocessed" / "data-00000-of-00001.arrow", rows)


def _retype(root):
    path = root / "coco_preprocessed" / "data-00000-of-00001.arrow"
    columns = {name: pa.array([[1.0]]) for name in SMALL}
    table = pa.table(columns)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def _unlist(root):
    text = f"{'0' * 32}  ./data-00000-of-00003.arrow\n{'0' * 32}  ./state.json\n"
    (root / "cc12m_preprocessed" / "flux.md5").write_text(text)


DAMAGE = {
    "cut within a batch": (
        lambda root: _truncate(root, -600),
        "whole Arrow IPC stream",
    ),
    "cut between messages": (lambda root: _truncate(root, -8), "without an end"),
    "empty file": (lambda root: _truncate(root, 0), "whole Arrow IPC stream"),
    "a file missing": (
        lambda root: (
            root / "cc12m_preprocessed" / "data-00000-of-00002.arrow"
        ).unlink(),
        "must hold data-00000-of-00002.arrow, got .* 1 missing",
    ),
    "a listed file missing": (_unlist, "must hold data-00000-of-00003.arrow"),
    "no list of sums": (
        lambda root: (root / "cc12m_preprocessed" / "a.uri").write_text("what is this"),
        "must hold an MD5 sum and a path a line, got 'what is this'",
    ),
    "a column missing": (_drop_column, "must have the column logvar, got __key__"),
    "columns of lists": (_retype, "column t5_encodings of .* must be binary or large"),
    "no validation": (
        lambda root: (root / "coco_preprocessed").rename(root / "coco"),
        "source.validation must be a folder",
    ),
    "no empty caption": (
        lambda root: (root / "empty_encodings" / "t5_empty.npy").unlink(),
        "source.empty_encodings must hold t5_empty.npy",
    ),
    "another empty caption": (
        lambda root: np.save(
            root / "empty_encodings" / "clip_empty.npy", np.zeros((1, 6), np.float32)
        ),
        r"must be \[5\] and finite, as clip_encodings of the rows, got \[6\] float32",
    ),
    "an empty caption with NaN": (
        lambda root: np.save(
            root / "empty_encodings" / "clip_empty.npy", np.full(5, np.nan, np.float16)
        ),
        "must be .* and finite",
    ),
    "a broken empty caption": (
        lambda root: (root / "empty_encodings" / "t5_empty.npy").write_bytes(b"?"),
        "must be a .npy file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_before_anything_is_read(download, damage):
    _, _, root = download
    MLPerfFluxConfig(str(root)).make()
    break_it, message = DAMAGE[damage]
    break_it(root)
    with pytest.raises(ValueError, match=message) as error:
        MLPerfFluxConfig(str(root)).make()
    assert "\n" not in str(error.value)


def _with_nan(values):
    values = values.clone()
    values.view(-1)[3] = math.nan
    values.view(-1)[2] = math.inf
    return values


BAD_ROWS = {
    "NaN": ("mean", _with_nan, "mean of .*.arrow:1 must be finite, got 2 values"),
    "text": ("t5_encodings", lambda _: _with_nan(_), "t5_encodings of .* be finite"),
    "shape": ("logvar", lambda v: v[:2], r"must be \[4, 2, 3\] as in the first row"),
    "dims": ("mean", lambda v: v[0], r"must be uint16 of 3 dims, .* uint16 \[2, 3\]"),
    "dtype": ("clip_encodings", lambda v: v.float().numpy(), "got float32"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_read(download, kind):
    rows, _, root = download
    name, spoil, message = BAD_ROWS[kind]
    bad = dict(rows[1])
    bad[name] = spoil(bad[name])
    path = root / "cc12m_preprocessed" / "data-00000-of-00002.arrow"
    write_stream(path, [rows[0], bad, rows[2]])
    source = MLPerfFluxConfig(str(root)).make()
    with pytest.raises(BrokenPicture, match=message):
        source.features(1)
    for index in (0, 2, 3):
        source.features(index)


def test_a_row_that_is_no_array(download):
    rows, _, root = download
    path = root / "cc12m_preprocessed" / "data-00001-of-00002.arrow"
    write_stream(path, rows[3:4])
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    for value in (b"no array", None):
        broken = table.set_column(1, "t5_encodings", pa.array([value], pa.binary()))
        with pa.ipc.new_stream(str(path), broken.schema) as writer:
            writer.write_table(broken)
        with pytest.raises(BrokenPicture, match="must be the bytes of a .npy file"):
            MLPerfFluxConfig(str(root)).make().features(3)


@pytest.mark.parametrize("step", [8, -1, None])
def test_a_wrong_timestep_is_named(download, step):
    rows, _, root = download
    path = root / "coco_preprocessed" / "data-00000-of-00001.arrow"
    write_stream(path, rows[5:6], timestep=pa.array([step], pa.int32()))
    source = MLPerfFluxConfig(str(root)).make()
    with pytest.raises(BrokenPicture, match=f"arrow:0 must be .* 0 and 7, got {step}"):
        source.features(5)


def test_sums_are_compared_with_the_files(download):
    _, _, root = download
    folder = root / "cc12m_preprocessed"
    sums = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  ./{path.name}"
        for path in sorted(folder.glob("*.arrow"))
    ]
    (folder / "flux-1.uri").write_text(f"https://example.org/data\n{sums[0]}\n")
    (folder / "flux-1.md5").write_text("\n".join(sums))
    source = MLPerfFluxConfig(str(root)).make()
    for index in range(5):
        source.features(index)
    path = folder / "data-00001-of-00002.arrow"
    data = bytearray(path.read_bytes())
    flipped = data.index(serialise(np.zeros(5, np.uint16))[:60])
    data[flipped + 130] ^= 1
    path.write_bytes(data)
    source = MLPerfFluxConfig(str(root)).make()
    source.features(0)
    with pytest.raises(BrokenPicture, match="00001-of-00002.arrow must have the MD5"):
        source.features(3)


def test_wrong_fields(download):
    _, _, root = download
    config = MLPerfFluxConfig(str(root))
    for fields, message in (
        ({"path": str(root / "none")}, "source.train must be a folder"),
        ({"scale": 0.0}, "source.scale must be positive"),
        ({"image_size": 0}, "source.image_size must be between 1 and 8192"),
        ({"train": " "}, "source.train must not be empty"),
        ({"train": "empty_encodings"}, "source.train must hold .arrow files"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **fields).make()


# Prints what there is to know, and fails if a package of encoders is imported.
CONVERT = """
import json, sys
from rfjax import commands
encoded = commands.encode(json.loads(sys.argv[1]), out=sys.argv[2], progress=False)
assert not {"torch", "transformers", "diffusers"} & set(sys.modules)
print(json.dumps(encoded.warnings))
"""


def test_the_data_set_holds_every_value(download, tmp_path_factory):
    rows, empty, root = download
    bad = dict(rows[2], mean=_with_nan(rows[2]["mean"]))
    path = root / "cc12m_preprocessed" / "data-00000-of-00002.arrow"
    write_stream(path, [rows[0], rows[1], bad])
    out = tmp_path_factory.mktemp("out") / "flux"
    fields = {
        "name": "flux",
        "source": {"kind": "mlperf_flux", "path": str(root), "autoencoder": "/none"},
        "max_broken": 0.2,
    }
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, json.dumps(fields), str(out)],
        check=True,
        capture_output=True,
    )
    left_out, captions = json.loads(done.stdout)
    assert left_out.startswith("left out")
    assert "00000-of-00002.arrow:2 must be finite, got 2 values" in left_out
    assert captions == "7 of 7 have no caption."
    manifest = shards.read_manifest(out)
    assert manifest.splits == {"train": 4, "validation": 3}
    assert manifest.latent.codec == "autoencoder_kl"
    assert manifest.context_shape == (6, 10)
    assert manifest.pooled_dim == 5
    source = MLPerfFluxConfig(str(root)).make()
    expected = {"train": [0, 1, 3, 4], "validation": [5, 6, 7]}
    for split, indices in expected.items():
        records = shards.open_split(out, split)
        for record, index in zip(records, indices, strict=True):
            for name, values in source.features(index).items():
                np.testing.assert_array_equal(record[name], values)
            annotation = json.loads(record["annotation"])
            assert annotation["source"]["key"] == source.entry(index).key
            timestep = source.entry(index).annotation.get("timestep")
            assert annotation.get("timestep") == timestep
    stored = shards.read_empty_caption(out)
    np.testing.assert_array_equal(
        bits(stored["t5_context"]), bits(empty["t5_encodings"])
    )
    report = verify(out, picture=out / "sheet.png")
    assert all("not compared" in n or "sheet" in n or "var" in n for n in report.notes)
    assert report.ok, str(report)
