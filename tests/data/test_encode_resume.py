# SPDX-License-Identifier: Apache-2.0
"""Encoding that is cut short goes on, and ends with the same bytes; what changes in
between, and what is broken, is named.
"""

import csv
import dataclasses
import json
import os
import resource
import threading

import numpy as np
import pytest

from rfjax import schema
from rfjax.data import encode, shards
from rfjax.data.buckets import fit, nearest_bucket
from rfjax.data.encode import looks
from rfjax.data.encode.plan import PLAN_FILE
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.sources import SOURCES, Entry
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.encoders import images, text
from rfjax.encoders.images.patch_pca import PatchPCA, PatchPCAConfig
from rfjax.errors import StorageError

NUM = 40


class World:
    """What tests change between two calls."""

    def __init__(self):
        self.captions = {}
        self.pictures = {}  # index -> seed of another picture
        self.broken = set()
        self.nan = set()
        self.on_open = []  # what happens while a source is opened, once each
        self.sizes = None  # index -> a size that is not the picture's; None: not told
        self.weights = "v1"


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """Registers a source, a codec and an encoder that obey a `World`."""
    world = World()

    @dataclasses.dataclass(frozen=True)
    class ShapesConfig:
        image_size: int = 16

        def make(self):
            if world.on_open:
                world.on_open.pop()()
            return Shapes() if world.sizes is None else SizedShapes()

    class Shapes:
        licence = "CC0 and others"
        caption_kinds = ("original", "synthetic")

        def __len__(self):
            return NUM

        def entry(self, index):
            second = f"synthetic {index}" if index % 3 else ""
            return Entry(
                key=f"row {index}",
                captions=(world.captions.get(index, f"picture {index}"), second),
                split="validation" if index % 5 == 0 else "train",
                licence=("CC0", "CC-BY")[index % 2],
                attribution=f"by, {index}",
                annotation={"n": index},
            )

        def picture(self, index):
            if index in world.broken:
                raise BrokenPicture(f"picture {index} is cut short")
            rng = np.random.default_rng(world.pictures.get(index, index))
            shape = ((16, 16), (12, 30), (40, 15))[index % 3]
            return rng.integers(0, 256, (*shape, 3), np.uint8)

    class SizedShapes(Shapes):
        def size(self, index):
            shape = ((16, 16), (12, 30), (40, 15))[index % 3]
            return world.sizes.get(index, shape)

    @dataclasses.dataclass(frozen=True)
    class PosteriorConfig(PatchPCAConfig):
        @staticmethod
        def load(path, folders=()):
            return Posterior(**vars(PatchPCAConfig.load(path, folders)))

        def make(self, training_images):
            return Posterior(**vars(super().make(training_images)))

    class Posterior(PatchPCA):
        has_variance = True

        def encode_posterior(self, given):
            mean = self.encode(given)
            for index in world.nan:
                shape = ((16, 16), (8, 32), (32, 8))[index % 3]
                bad = fit(SOURCES["shapes"]().make().picture(index), shape)[0]
                mean[[np.array_equal(image, bad) for image in given], 0, 0, 0] = np.nan
            return mean, mean - 3

    @dataclasses.dataclass(frozen=True)
    class LettersConfig:
        length: int = 14
        name: str = "letters"
        dim: int = 4

        def make(self):
            return Letters(self)

    class Letters:
        mask, joined, pooled_dim = False, "tokens", 2

        def __init__(self, config):
            self.context_dim, self.length = config.dim, config.length
            self.weights = world.weights

        def encode(self, captions):
            lengths = np.array([max(1, len(c)) for c in captions], np.int32)
            if lengths.max() > 2 * self.length:
                raise ValueError_(f"a caption of {lengths.max()} letters is too long")
            codes = np.zeros((len(captions), self.length))
            for row, caption in enumerate(captions):
                kept = [ord(c) for c in caption[: self.length]]
                codes[row, : len(kept)] = kept
            return text.EncodedText(
                context=codes[:, :, None]
                .repeat(self.context_dim, 2)
                .astype(np.float32),
                context_length=np.minimum(lengths, self.length),
                pooled=np.stack([lengths, lengths], 1).astype(np.float32),
                num_tokens=lengths,
            )

    from rfjax.errors import UserError as ValueError_

    monkeypatch.setitem(SOURCES, "shapes", ShapesConfig)
    monkeypatch.setitem(images.IMAGE_CODECS, "posterior", PosteriorConfig)
    monkeypatch.setitem(text.TEXT_ENCODERS, "letters", LettersConfig)
    return world


def make_config(**changes):
    fields = {
        "name": "shapes",
        "source": {"kind": "shapes"},
        "codec": {"kind": "posterior", "channels": 8},
        "buckets": {"max_aspect": 4, "multiple": 8},
        "text_encoders": [
            {"kind": "letters", "name": "a"},
            {"kind": "letters", "name": "b", "dim": 0, "length": 40},
        ],
        "batch_size": 3,
        "records_per_shard": 5,
    }
    return schema.build(encode.EncodeConfig, fields | changes)


def run(out, config=None, **options):
    told = []
    manifest = encode.encode_dataset(
        config or make_config(), out=out, warn=told.append, **options
    )
    return manifest, " ".join(told)


def take_share(out, share, **options):
    return encode.encode_share(out, share, warn=lambda text: None, **options)


def contents(folder):
    """Path -> bytes of every file, hidden ones too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def cut_short(out, *, after, config=None):
    """Begins to encode, and is killed after some shards."""
    seen = []

    def progress(done, total):
        seen.append(done)
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, config, progress=progress)
    assert not out.exists()


@pytest.fixture(scope="module")
def whole_files_of():
    return {}


@pytest.fixture
def uninterrupted(world, tmp_path_factory, whole_files_of):
    """Contents of the data set that nothing disturbs; made once."""
    if not whole_files_of:
        out = tmp_path_factory.mktemp("whole") / "shapes"
        run(out)
        whole_files_of.update(contents(out))
        assert [path.name for path in out.parent.iterdir()] == ["shapes"]
    return whole_files_of


# -- What comes out ----------------------------------------------------------------


def test_records_of_several_encoders_captions_and_buckets(tmp_path):
    manifest, _ = run(tmp_path / "out")
    source, codec = SOURCES["shapes"]().make(), shards.read_codec(tmp_path / "out")
    sizes = ((8, 32), (16, 16), (32, 8))
    assert manifest.latent.buckets == ((2, 8), (4, 4), (8, 2))
    assert manifest.latent.shape == (4, 4, 8)
    assert [e.prefix for e in manifest.text.encoders] == ["a_", "b_"]
    assert manifest.text.captions == ("original", "synthetic")
    assert manifest.licences == {"CC-BY": 20, "CC0": 20}
    expected = [
        (split, bucket, index)
        for split in ("train", "validation")
        for bucket in sizes
        for index in range(NUM)
        if (index % 5 == 0) == (split == "validation")
        and nearest_bucket(*source.picture(index).shape[:2], sizes) == bucket
    ]
    read = []
    for split in ("train", "validation"):
        for shape in manifest.latent.shapes:
            folder = shards.tfds_folder(tmp_path / "out", manifest, shape)
            import tensorflow_datasets as tfds

            read += tfds.builder_from_directory(folder).as_data_source(split=split)
    assert len(read) == len(expected) == NUM
    for record, (_, size, index) in zip(read, expected, strict=True):
        entry, picture = source.entry(index), source.picture(index)
        image, crop = fit(picture, size)
        mean, log_variance = codec.encode_posterior(image[None])
        for name, value in (("latents", mean), ("log_variance", log_variance)):
            np.testing.assert_allclose(
                record[name].astype(np.float32), value[0], rtol=2**-8, atol=1e-3
            )
        assert json.loads(record["annotation"]) == {
            "n": index,
            "source": {
                "key": entry.key,
                "licence": entry.licence,
                "attribution": entry.attribution,
                "size": list(picture.shape[:2]),
                "crop": list(crop),
            },
        }
        assert record["caption"].decode() == entry.captions[0]
        assert record["synthetic"].decode() == entry.captions[1]
        for prefix, caption in zip(("", "synthetic_"), entry.captions, strict=True):
            rows = 14 if caption else 0
            assert record[f"{prefix}a_context"].shape == (rows, 4)
            assert record[f"{prefix}a_context_length"] == min(len(caption), 14)
            kept = record[f"{prefix}a_context"][: len(caption), 0].astype(int)
            assert list(kept) == [ord(c) for c in caption[:14]]
            assert f"{prefix}b_context" not in record
            assert record[f"{prefix}b_pooled"][0] == len(caption)
    with (tmp_path / "out" / "credits.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "split", "licence", "attribution"]
    assert rows[1:] == [
        [f"row {i}", split, ("CC0", "CC-BY")[i % 2], f"by, {i}"]
        for split, _, i in expected
    ]


# -- Cut short ---------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_rename_it_ends_with_the_same_bytes(
    tmp_path, monkeypatch, uninterrupted, when
):
    """Every change of state is a rename: process i dies at its i-th."""
    replace, calls, num_deaths = os.replace, [], 0

    def dying(*args):
        calls.append(args)
        is_last = len(calls) > num_deaths
        if is_last and when == "before":
            raise KeyboardInterrupt
        replace(*args)
        if is_last:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    while num_deaths < 100:
        calls.clear()
        try:
            run(tmp_path / "out")
            break
        except KeyboardInterrupt:
            num_deaths += 1
    assert num_deaths > 5
    assert contents(tmp_path / "out") == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled_in_place(tmp_path, monkeypatch, uninterrupted):
    """It may be a mount point: nothing is written beside it."""
    out = tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    move, calls = os.replace, []

    def dying(source, target):
        if os.path.dirname(target) == str(out):
            calls.append(target)
            if len(calls) in (1, 3):
                raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(out)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    run(out)
    assert contents(out) == uninterrupted
    assert out.stat().st_ino == inode


def test_other_data_gives_other_files(tmp_path, world, uninterrupted):
    world.pictures[7] = 1007
    run(tmp_path / "out")
    found = contents(tmp_path / "out")
    changed = {name for name in found if found[name] != uninterrupted[name]}
    assert any("array_record" in name for name in changed)


def test_finished_shards_are_not_encoded_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    cut_short(out, after=20)
    finished = {p: p.stat().st_mtime_ns for p in WorkFolder(out).shards.iterdir()}
    assert len(finished) >= 4
    seen = []

    def progress(done, total):
        if not seen:
            assert {p: p.stat().st_mtime_ns for p in finished} == finished
        seen.append((done, total))

    run(out, progress=progress)
    assert seen[0][0] >= 10
    assert seen[-1] == (NUM, NUM)
    assert seen == sorted(seen)


def test_a_disk_that_fills(tmp_path, uninterrupted):
    """By the limit of file sizes: the plan fits, no shard does."""
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            StorageError, match="must have room for .*array_record.*100"
        ):
            run(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(WorkFolder(out).path.rglob("*.array_record"))
    plan = WorkFolder(out).plan / PLAN_FILE
    made = plan.stat().st_mtime_ns
    cut_short(out, after=10)
    assert plan.stat().st_mtime_ns == made
    run(out)
    assert contents(out) == uninterrupted


def test_what_others_put_into_the_folder_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    cut_short(out, after=20)
    theirs = [
        WorkFolder(out).path / "notes.txt",
        WorkFolder(out).plan / "notes.txt",
        WorkFolder(out).shards / "99999.json",
        tmp_path / "beside.txt",
    ]
    for path in theirs:
        path.write_text("years of work")
    run(out)
    assert [path.read_text() for path in theirs] == ["years of work"] * 4
    names = {path.name for path in out.iterdir()}
    assert names == {
        "rfjax.json",
        "codec.npz",
        "empty_caption.npz",
        "credits.csv",
        "report.html",
        "tfds",
    }


# -- Several take part -------------------------------------------------------------


def test_shares_that_run_at_the_same_time(tmp_path, uninterrupted):
    out, results, errors = tmp_path / "out", {}, []

    def take(index):
        try:
            share = encode.Share(index, 3)
            results[index] = take_share(out, share, config=make_config())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert any(results.values())
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # One that is started again has nothing to do; one of other data is refused.
    assert encode.encode_share(out, encode.Share(0, 3)).splits["train"] == 32
    with pytest.raises(ValueError, match="batch_size must be 3, with which .* got 4"):
        encode.encode_share(out, encode.Share(0, 3), config=make_config(batch_size=4))


@pytest.mark.parametrize("share", [None, encode.Share(0, 3)])
def test_whoever_is_overtaken_has_nothing_to_do(tmp_path, world, uninterrupted, share):
    """Another finishes the data set while the source is opened."""
    out = tmp_path / "out"

    def overtake():
        run(out)
        world.broken = set(range(NUM))  # nothing can be encoded once more

    world.on_open = [overtake]
    if share is None:
        run(out)
    else:
        take_share(out, share, config=make_config())
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_share_alone_leaves_the_rest_to_others(tmp_path, uninterrupted):
    out = tmp_path / "out"
    seen = []
    first = take_share(
        out,
        encode.Share(1, 2),
        config=make_config(),
        progress=lambda *counts: seen.append(counts),
    )
    assert first is None
    assert not out.exists()
    assert 0 < seen[-1][0] < seen[-1][1] == NUM
    before = seen[-1][0]
    seen.clear()
    # From the folder alone, as a job of an array has it.
    manifest = take_share(
        out, encode.Share(0, 2), progress=lambda *counts: seen.append(counts)
    )
    assert seen[0] == (before, NUM)
    assert seen[-1] == (NUM, NUM)
    assert manifest.splits == {"train": 32, "validation": 8}
    assert contents(out) == uninterrupted


def test_two_that_encode_everything_do_not_meet(tmp_path):
    out, config = tmp_path / "out", make_config()

    def progress(done, total):
        with pytest.raises(ValueError, match="out must not be in use, got .*out"):
            run(out)
        with pytest.raises(ValueError, match="out must not be in use"):
            encode.encode_share(out, encode.Share(0, 2), config=config)

    run(out, config, progress=progress)


# -- What may not change -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "batch_size must be 3, with which .* got 4"),
        ({"filters": {"min_side": 2}}, "filters.min_side must be None, .* got 2"),
        (
            {
                "text_encoders": [
                    {"kind": "letters", "name": "a", "length": 15},
                    {"kind": "letters", "name": "b", "dim": 0, "length": 40},
                ]
            },
            r"text_encoders\[0\].length must be 14, .* got 15; .* remove .*encoding",
        ),
    ],
)
def test_another_config_is_refused(tmp_path, monkeypatch, changes, message):
    out = tmp_path / "out"
    cut_short(out, after=10)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(out, make_config(**changes))
    assert contents(tmp_path) == before
    run(out, make_config(max_broken=0.5))  # which may differ


def test_other_weights_and_another_source_are_refused(tmp_path, monkeypatch, world):
    out = tmp_path / "out"
    cut_short(out, after=10)
    world.weights = "v2"
    message = r"weights of text_encoders\[0\] must be 'v1' .* got 'v2'"
    with pytest.raises(ValueError, match=message):
        run(out)
    world.weights = "v1"
    finished, unfinished = 1, 39  # records of a first shard, and of the last
    for index in (finished, unfinished):
        world.captions[index] = "another"
        with pytest.raises(ValueError, match="source must hold the records"):
            run(out)
        world.captions.clear()
    world.pictures[unfinished] = 1
    with pytest.raises(ValueError, match="got another record 'row 39'"):
        run(out)
    world.captions[unfinished] = "another"
    with pytest.raises(ValueError, match="got another record 'row 39'"):
        encode.encode_share(out, encode.Share(0, 1))


def test_looks_are_of_one_source_and_its_filters(tmp_path, world):
    """What was seen of a picture before its background changed is of no use."""

    def files(**changes):
        config = make_config(**changes)
        parts = looks.make_parts(config, config.source.make(), range(NUM), tmp_path)
        return {part.file for part in parts}

    known = files()
    assert files(batch_size=5) == known
    assert files(source={"kind": "shapes", "image_size": 32}) != known
    assert files(filters={"min_side": 8}) != known
    world.captions = {0: "another"}
    assert files() != known


def test_sizes_that_are_told_are_enough_for_buckets(tmp_path, world, uninterrupted):
    world.sizes = {}
    run(tmp_path / "same")
    assert contents(tmp_path / "same") == uninterrupted
    world.sizes = {39: (12, 30)}  # the picture has another by the time it is encoded
    with pytest.raises(ValueError, match="got another record 'row 39'"):
        run(tmp_path / "other")


def test_a_plan_of_another_version(tmp_path, monkeypatch):
    out = tmp_path / "out"
    cut_short(out, after=10)
    path = WorkFolder(out).plan / PLAN_FILE
    fields = json.loads(path.read_text())
    for damaged in (fields | {"version": 0}, {"version": 1}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="must be .* finish it with the rfjax"):
            run(out)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "notes"])
def test_a_shard_that_changed_is_encoded_again(
    tmp_path, monkeypatch, uninterrupted, damage
):
    out = tmp_path / "out"
    cut_short(out, after=20)
    work = WorkFolder(out)
    path = work.shard_file(1)
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:])
    elif damage == "cut":
        path.write_bytes(data[:100])
    elif damage == "remove":
        path.unlink()
    else:
        work.notes_file(1).write_text("{}")
    _, told = run(out)
    assert "shard 1 of" in told
    assert "changed after it was written" in told
    assert contents(out) == uninterrupted


# -- What is broken ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_buckets", "tells_sizes"), [(True, False), (True, True), (False, False)]
)
def test_broken_records_are_named_and_left_out(
    tmp_path, world, has_buckets, tells_sizes
):
    world.broken = {3, 20}
    world.sizes = {} if tells_sizes else None
    world.nan = {9}
    world.captions = {4: "x" * 100, 6: "", 8: "y" * 20}
    size = {} if has_buckets else {"buckets": {}}
    out = tmp_path / "out"
    config = make_config(max_broken=0.1, **size)
    manifest, told = run(out, config)
    assert manifest.splits == {"train": 29, "validation": 7}
    rows = list(csv.reader((out / "broken.csv").read_text().splitlines()))
    assert {row[0] for row in rows[1:]} == {"row 3", "row 20", "row 9", "row 4"}
    for part in (
        "left out 4 broken records",
        "picture 3 is cut short",
        "1 of 36 have no original caption",
        "12 of 36 have no synthetic caption",
        "captions were cut to the 14 tokens that the text encoder a takes, "
        "the longest of 20: 'yyy",
    ):
        assert part in told, told
    assert verify_records(out, manifest) == 36
    with pytest.raises(
        ValueError,
        match=r"max_broken must .* got 0.05 and .*; .*=0\.(08|1)\. "
        r"Finished work is kept in .*other\.encoding\.$",
    ):
        run(tmp_path / "other", make_config(max_broken=0.05, **size))
    assert not (tmp_path / "other").exists()
    # What is done counts once more may be broken.
    run(tmp_path / "other", config)
    assert contents(tmp_path / "other") == contents(out)


def verify_records(out, manifest):
    """How many records there are, all of which are sound."""
    import tensorflow_datasets as tfds

    count = 0
    for shape in manifest.latent.shapes:
        builder = tfds.builder_from_directory(shards.tfds_folder(out, manifest, shape))
        for split in builder.info.splits:
            for record in builder.as_data_source(split=split):
                assert np.isfinite(record["latents"].astype(np.float32)).all()
                count += 1
    return count


def test_what_filters_leave_out_is_told_and_shown(tmp_path, world):
    world.pictures = {6: 0, 9: 0, 4: 1}  # of the same shape
    world.captions = {2: "a gun", 12: "unclear"}
    config = make_config(filters={"exact_duplicates": True, "deny": ["gun"]})
    manifest, told = run(tmp_path / "out", config)
    assert sum(manifest.splits.values()) == NUM - 4
    assert (
        "filters left out 4 of 40 records (denied word 1, exact duplicate 3); "
        "report.html shows them."
    ) in told
    page = (tmp_path / "out" / "report.html").read_text()
    for shown in (
        "36 of 40 records",
        "exact duplicate: 3",
        "have no synthetic caption",
    ):
        assert shown in page
    kept, told = run(tmp_path / "all")
    assert sum(kept.splits.values()) == NUM
    assert "filters" not in told
    listed = [file.path for file in kept.files]
    assert "report.html" in listed


def test_a_refusal_says_whether_anything_is_left(tmp_path):
    out, refusal = tmp_path / "out", "filters must leave a record, got all 40 removed"
    with pytest.raises(ValueError, match=refusal) as caught:
        run(out, make_config(filters={"max_caption_words": 1}, buckets={}))
    assert "is kept" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=refusal) as caught:
        run(out, make_config(filters={"min_side": 1000}))
    assert str(caught.value).endswith(f"Finished work is kept in {out}.encoding.")
    assert os.listdir(f"{out}.encoding") == ["looks"]
    run(out)
    assert os.listdir(tmp_path) == ["out"]
