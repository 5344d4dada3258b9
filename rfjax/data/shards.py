# SPDX-License-Identifier: Apache-2.0
"""A data set on disk: TFDS records in ArrayRecord shards, and a manifest beside them.

    ROOT/rfjax.json            the manifest: shapes, encoders, counts, checksums
    ROOT/codec.npz             what turns latents back into pictures
    ROOT/empty_caption.npz     the encoded empty caption, used when a caption is dropped
    ROOT/tfds/NAME/1.0.0/      a genuine TFDS data set: `tfds.builder_from_directory`

Tensors are stored as raw bfloat16 bytes in uncompressed records of one example each:
compression saves a fifth of bfloat16 data and costs half of the reading rate.
TensorFlow is never imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from rfjax import whole_files
from rfjax.data.records import RecordSource
from rfjax.encoders.patch_codec import load_patch_codec
from rfjax.errors import MissingFileError, UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "rfjax.json"
CODEC_FILE = "codec.npz"
EMPTY_CAPTION_FILE = "empty_caption.npz"
TFDS_VERSION = "1.0.0"

# Below this size every checksum is computed before training starts.
FULL_CHECK_BYTES = 2 * 1024**3

# LatentSpec.codec -> function from codec.npz to what has encode() and decode().
CODECS = {"patch_pca": load_patch_codec}

_REMEDY = "copy it again, or make the data set again with `rfjax encode`."

bfloat16 = ml_dtypes.bfloat16


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """What the stored latents are.

    Attributes:
      shape: (H, W, C) of one example.
      codec: kind of the codec that made them, e.g. "patch_pca".
      scale: stored latents are (codec output - shift) * scale.
      shift: see scale.
      layout: order of the axes.
      dtype: how they are stored.
    """

    shape: tuple[int, int, int]
    codec: str
    scale: float = 1.0
    shift: float = 0.0
    layout: str = "HWC"
    dtype: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One text encoder's features in each record.

    The features are `{prefix}context` [length, context_dim], `{prefix}context_length`
    and `{prefix}pooled` [pooled_dim]. With several encoders each has its own prefix.

    Attributes:
      name: free name, unique in the data set.
      kind: key of `rfjax.encoders.text.TEXT_ENCODERS`.
      context_dim: width of the token states.
      length: number of tokens T that a context is padded to.
      pooled_dim: width of the pooled vector.
      prefix: what the feature names start with.
    """

    name: str
    kind: str
    context_dim: int
    length: int
    pooled_dim: int
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """How captions are stored.

    Attributes:
      encoders: one entry for each text encoder.
      layout: "padded" stores all T tokens, pads as the encoder returned them;
        "unpadded" stores the real tokens only, and zeros are appended on reading.
      mask: whether the encoder itself was told which tokens are pads.
    """

    encoders: tuple[EncoderSpec, ...]
    layout: str = "padded"
    mask: bool = True


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of the data set, by its path relative to the root.

    `split` and `num_records` are set for shards, and empty for other files.
    """

    path: str
    num_bytes: int
    sha256: str
    split: str = ""
    num_records: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of rfjax.json.

    Attributes:
      name: name of the TFDS data set.
      grade: which source made it, e.g. "emoji".
      splits: split name -> number of examples.
      latent: the stored latents.
      text: the stored text states.
      files: every file with its size and SHA-256.
      licence: the notice that goes wherever the data goes.
      creation: the options it was made with.
      version: of this format.
    """

    name: str
    grade: str
    splits: Mapping[str, int]
    latent: LatentSpec
    text: TextSpec
    files: tuple[StoredFile, ...] = ()
    licence: str = ""
    creation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = FORMAT_VERSION

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one example's latents."""
        return self.latent.shape

    @property
    def context_shape(self) -> tuple[int, int]:
        """(T, context_dim) of one example's context."""
        encoder = only_encoder(self)
        return encoder.length, encoder.context_dim

    @property
    def pooled_dim(self) -> int:
        """Width of one example's pooled vector."""
        return only_encoder(self).pooled_dim


def only_encoder(manifest: Manifest) -> EncoderSpec:
    """Returns the text encoder of a data set that has one; ValueError otherwise."""
    encoders = manifest.text.encoders
    if len(encoders) != 1:
        raise UserError(
            f"text.encoders of data set {manifest.name} must hold one encoder, got "
            f"{len(encoders)}; joining the contexts of several is not supported yet."
        )
    return encoders[0]


# -- Manifest ----------------------------------------------------------------------


def manifest_to_json(manifest: Manifest) -> str:
    """Returns the text of rfjax.json."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str, *, path: str | os.PathLike = MANIFEST_FILE):
    """Parses the text of rfjax.json; `path` only appears in error messages.

    Raises:
      UserError: not JSON, of another version, or with fields missing or unknown.
    """
    remedy = "encode the data set again with `rfjax encode`."
    try:
        fields = json.loads(text)
        version = fields["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a data set manifest ({error!r}); {remedy}"
        ) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this rfjax reads version "
            f"{FORMAT_VERSION}; {remedy}"
        )
    try:
        latent = dict(fields.pop("latent"))
        latent["shape"] = tuple(latent["shape"])
        text_fields = dict(fields.pop("text"))
        encoders = tuple(EncoderSpec(**e) for e in text_fields.pop("encoders"))
        files = tuple(StoredFile(**f) for f in fields.pop("files"))
        return Manifest(
            latent=LatentSpec(**latent),
            text=TextSpec(encoders=encoders, **text_fields),
            files=files,
            **fields,
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not have the fields of a manifest ({error}); {remedy}"
        ) from error


def read_manifest(root: str | os.PathLike) -> Manifest:
    """Reads ROOT/rfjax.json.

    Raises:
      MissingFileError: the folder or the manifest is missing.
      UserError: the manifest cannot be read by this version.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(
            f"data folder {root} does not exist; make it with `rfjax encode "
            f"--config=configs/data/NAME.py --out={root}`."
        )
    path = root / MANIFEST_FILE
    if not path.is_file():
        state = "is empty" if not any(root.iterdir()) else f"holds no {MANIFEST_FILE}"
        raise MissingFileError(
            f"data folder {root} {state}, so it is not a data set; name another, "
            "or make one with `rfjax encode --config=configs/data/NAME.py --out=DIR`."
        )
    return manifest_from_json(path.read_text(encoding="utf-8"), path=path)


# -- Records -----------------------------------------------------------------------


def make_features(manifest: Manifest) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of one record, in the manifest's shapes."""

    def tensor(shape, dtype=bfloat16):
        # Any other encoding widens bfloat16 or fails to write it.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    features = {
        "latents": tensor(manifest.latent.shape),
        "caption": tfds.features.Text(),
        # JSON: what is known about the picture, e.g. the objects in a scene.
        "annotation": tfds.features.Text(),
    }
    for encoder in manifest.text.encoders:
        length = encoder.length if manifest.text.layout == "padded" else None
        features |= {
            f"{encoder.prefix}context": tensor((length, encoder.context_dim)),
            f"{encoder.prefix}context_length": tensor((), np.int32),
            f"{encoder.prefix}pooled": tensor((encoder.pooled_dim,)),
        }
    return tfds.features.FeaturesDict(features)


def tfds_folder(root: str | os.PathLike, manifest: Manifest) -> Path:
    """Returns the folder that `tfds.builder_from_directory` takes."""
    return Path(root) / "tfds" / manifest.name / TFDS_VERSION


def write_dataset(
    root: str | os.PathLike,
    *,
    manifest: Manifest,
    examples: Mapping[str, Iterable[Mapping[str, Any]]],
    empty_caption: Mapping[str, np.ndarray],
    save_codec,
    records_per_shard: int = 1024,
) -> Manifest:
    """Writes a whole data set: into a temporary folder first, renamed when complete.

    Args:
      root: target; must be new or empty.
      manifest: `files` is filled in here; `splits` says how many examples to expect.
      examples: split -> records with the keys of `make_features`.
      empty_caption: the text features of the empty caption, padded to full length.
      save_codec: called with the path of codec.npz.
      records_per_shard: at most this many records go into one file.

    Returns:
      The manifest as written.

    Raises:
      UserError: the target is not empty, or a split is empty or of another length.
    """
    whole_files.check_free(root, field="out")
    for split, num_records in manifest.splits.items():
        if num_records < 1:
            raise UserError(
                f"split {split} of data set {manifest.name} must hold at least 1 "
                f"example, got {num_records}; ask for more examples."
            )
    with whole_files.new_folder(root) as partial:
        folder = tfds_folder(partial, manifest)
        folder.mkdir(parents=True)
        features = make_features(manifest)
        shards = []
        for split, num_records in manifest.splits.items():
            shards += _write_split(
                partial,
                folder,
                name=manifest.name,
                split=split,
                features=features,
                examples=examples[split],
                num_records=num_records,
                records_per_shard=records_per_shard,
            )
        _write_tfds_metadata(folder, manifest, features, shards)
        save_codec(partial / CODEC_FILE)
        # npz cannot hold bfloat16; float32 holds each bfloat16 value exactly.
        np.savez(
            partial / EMPTY_CAPTION_FILE,
            **{
                name: np.asarray(value, bfloat16).astype(np.float32)
                if not name.endswith("context_length")
                else np.asarray(value, np.int32)
                for name, value in empty_caption.items()
            },
        )
        others = [
            path
            for path in sorted(partial.rglob("*"))
            if path.is_file() and ".array_record-" not in path.name
        ]
        files = tuple(shards) + tuple(_describe(partial, path) for path in others)
        manifest = dataclasses.replace(manifest, files=files)
        (partial / MANIFEST_FILE).write_text(
            manifest_to_json(manifest), encoding="utf-8"
        )
    return manifest


def _describe(root: Path, path: Path, *, split: str = "", num_records: int = 0):
    return StoredFile(
        path=path.relative_to(root).as_posix(),
        num_bytes=path.stat().st_size,
        sha256=_sha256(path),
        split=split,
        num_records=num_records,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_split(
    root, folder, *, name, split, features, examples, num_records, records_per_shard
):
    """Writes one split's shards and returns their descriptions."""
    num_shards = math.ceil(num_records / records_per_shard)
    # Even shards: sizes differ by one record at most.
    bounds = [num_records * i // num_shards for i in range(num_shards + 1)]
    examples = iter(examples)
    shards = []
    for shard in range(num_shards):
        path = folder / f"{name}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        count = bounds[shard + 1] - bounds[shard]
        try:
            for _ in range(count):
                try:
                    example = next(examples)
                except StopIteration:
                    raise UserError(
                        f"split {split} was announced with {num_records} examples but "
                        "its source ended early; correct manifest.splits."
                    ) from None
                writer.write(features.serialize_example(example))
        finally:
            writer.close()
        shards.append(_describe(root, path, split=split, num_records=count))
    if next(examples, None) is not None:
        raise UserError(
            f"split {split} was announced with {num_records} examples but its source "
            "has more; correct manifest.splits."
        )
    return shards


def _write_tfds_metadata(folder, manifest, features, shards):
    split_infos = []
    for split in manifest.splits:
        own = [shard for shard in shards if shard.split == split]
        template = tfds.core.ShardedFileTemplate(
            dataset_name=manifest.name,
            data_dir=folder,
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        split_infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.num_records for shard in own],
                num_bytes=sum(shard.num_bytes for shard in own),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=split_infos,
        check_data=False,
        description=f"{manifest.grade}: latents and text states. {manifest.licence}",
    )


# -- Reading -----------------------------------------------------------------------


def check_shards(root: str | os.PathLike, *, full: bool | None = None) -> Manifest:
    """Checks every file named in the manifest and returns the manifest.

    Sizes are always compared; contents by SHA-256 when `full`, or, when `full` is
    None, if the data set is smaller than `FULL_CHECK_BYTES`. Of a larger one only the
    files beside the shards are then read whole: a shard has a checksum of its own for
    every record, which is verified when the record is read.

    Raises:
      MissingFileError: the folder, the manifest or a file is missing.
      UserError: a file is truncated or altered, or the manifest is inconsistent.
    """
    root = Path(root)
    manifest = read_manifest(root)
    small = sum(file.num_bytes for file in manifest.files) < FULL_CHECK_BYTES
    for file in manifest.files:
        is_read = full or (full is None and (small or not file.split))
        _check_file(root, file, contents=is_read)
    for split, num_records in manifest.splits.items():
        stored = sum(f.num_records for f in manifest.files if f.split == split)
        if stored != num_records:
            raise UserError(
                f"split {split} of {root} must hold {num_records} records, its shards "
                f"hold {stored}; {_REMEDY}"
            )
    return manifest


def _check_file(root: Path, file: StoredFile, *, contents: bool) -> None:
    """Raises unless a file is there, as long as it was, and if asked with its bytes."""
    path = root / file.path
    if not path.is_file():
        raise MissingFileError(
            f"data file {path} is named in {MANIFEST_FILE} but missing; {_REMEDY}"
        )
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        raise UserError(
            f"data file {path} must have {file.num_bytes} bytes, has {num_bytes} "
            f"(truncated or overwritten); {_REMEDY}"
        )
    if contents and _sha256(path) != file.sha256:
        raise UserError(
            f"data file {path} does not match its SHA-256 checksum in "
            f"{MANIFEST_FILE}; {_REMEDY}"
        )


def _verified(root: str | os.PathLike, name: str) -> Path:
    """The path of a file beside the shards, once its contents are verified."""
    for file in read_manifest(root).files:
        if file.path == name:
            _check_file(Path(root), file, contents=True)
    return Path(root) / name


def open_split(root: str | os.PathLike, split: str, *, full_check: bool = False):
    """Opens one split for random access.

    Args:
      root: the data folder.
      split: "train" or "validation".
      full_check: passed on to `check_shards`; sizes only by default.

    Returns:
      A `tfds.data_source` in a faster decoder: `source[i]` is a dictionary of read-only
      NumPy arrays, and bytes for texts.

    Raises:
      MissingFileError: something is missing.
      UserError: no such split, damaged files, or records of other shapes than the
        manifest says.
    """
    manifest = check_shards(root, full=full_check)
    if split not in manifest.splits:
        raise UserError(
            f"data set {root} has no split {split!r}; choose one of "
            f"{sorted(manifest.splits)}."
        )
    builder = tfds.builder_from_directory(tfds_folder(root, manifest))
    expected = make_features(manifest)
    stored = builder.info.features
    for name, feature in expected.items():
        found = (stored[name].shape, stored[name].np_dtype) if name in stored else None
        if found != (feature.shape, feature.np_dtype):
            raise UserError(
                f"feature {name} of {root} must be {feature.shape} "
                f"{np.dtype(feature.np_dtype)} as {MANIFEST_FILE} says, but the "
                f"records have {found}; make the data set again with "
                "`rfjax encode`."
            )
    raw = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    return RecordSource(
        raw,
        tensors={
            name: (feature.shape, feature.np_dtype)
            for name, feature in expected.items()
            if not isinstance(feature, tfds.features.Text)
        },
        shards=[
            (str(Path(root) / file.path), file.num_records)
            for file in manifest.files
            if file.split == split
        ],
    )


def read_codec(root: str | os.PathLike):
    """Returns the codec whose `decode` turns this data set's latents into pictures.

    Raises:
      MissingFileError: data set or codec is missing.
      UserError: the codec is unknown or damaged.
    """
    kind = read_manifest(root).latent.codec
    if kind not in CODECS:
        raise UserError(
            f"latent.codec of {root} must be one of {sorted(CODECS)} to make pictures, "
            f"got {kind!r}."
        )
    return CODECS[kind](_verified(root, CODEC_FILE))


def read_empty_caption(root: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the text features of the empty caption: bfloat16 arrays, int32 length.

    Raises:
      MissingFileError: data set or file is missing. ValueError: it is damaged.
    """
    with np.load(_verified(root, EMPTY_CAPTION_FILE)) as arrays:
        return {
            name: value.astype(bfloat16) if value.dtype == np.float32 else value
            for name, value in arrays.items()
        }
