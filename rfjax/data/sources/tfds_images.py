# SPDX-License-Identifier: Apache-2.0
"""TFDS data sets on this disk with pictures and texts or labels, without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfjax.data.numbering import Numbering
from rfjax.data.sources.base import ImageSize
from rfjax.data.sources.columns import Columns, choose_splits
from rfjax.data.sources.pictures import WHITE, BrokenPicture, Colour, Picture
from rfjax.data.sources.rows import NOT_STATED, RowSource
from rfjax.data.sources.tfrecord_files import TfRecords
from rfjax.errors import MissingFileError, UserError, refusal_of_disk
from rfjax.value_types import InputPath, Text, check_fields


@dataclasses.dataclass(frozen=True)
class TfdsImagesConfig:
    """Which data set, and what its features are.

    Attributes:
      path: folder with dataset_info.json, as ~/tensorflow_datasets/coco/1.0.0; its
        files are ArrayRecord or TFRecord.
      splits: names of the splits that are used; all by default. A data set of one split
        is divided by the hash of the captions.
      picture: feature of the pictures; by default the only Image.
      columns: which features are the captions, the licence and so on; a ClassLabel is
        read as the name of its class; captions.text.0 is the first text of a sequence.
      image_size: S; pictures are brought to about S x S pixels.
      background: red, green and blue behind what is transparent.
      licence: notice that goes wherever the pictures or their latents go; by default
        what the data set says of itself.
    """

    path: InputPath
    splits: tuple[Text, ...] = ()
    picture: Text | None = None
    columns: Columns = Columns()
    image_size: ImageSize = 256
    background: Colour = WHITE
    licence: Text | None = None

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> RowSource:
        """Opens the files; those of TFRecord are read through once.

        Raises:
          UserError: they are no such data set, or a split or feature is missing.
          MissingFileError: there is no such folder.
        """
        rows = _Records(self)
        licence = self.licence or rows.licence
        return RowSource(
            rows, self.columns, background=self.background, licence=licence
        )


class _Records:
    """The records of all splits, one after the other."""

    notes = ()

    def __init__(self, config: TfdsImagesConfig):
        import tensorflow_datasets as tfds

        info = _open(Path(config.path))
        self.where = config.path
        self.licence = info.redistribution_info.license or NOT_STATED
        self._features = info.features
        images = {
            name: tfds.decode.SkipDecoding()
            for name, feature in info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._raw = images
        self._picture = _choose_picture(config.picture, info.features, images)
        # TFDS gives them in another order in each process.
        self.columns: Collection[str] = sorted(set(info.features) - set(images))
        splits = choose_splits(info.splits, config.splits, where=self.where)
        self._names = list(splits)
        opened = [_open_split(split, info.file_format) for split in splits.values()]
        self._splits = opened
        self._numbering = Numbering(map(len, opened))

    def __len__(self) -> int:
        return len(self._numbering)

    def key(self, index: int) -> str:
        """SPLIT:RECORD, counted from 0."""
        split, record = self._numbering.place(index)
        return f"{self._names[split]}:{record}"

    def split(self, index: int) -> str:
        """The split of a record, if there are several."""
        split, _ = self._numbering.place(index)
        return self._names[split] if len(self._names) > 1 else ""

    def row(self, index: int) -> Mapping[str, Any]:
        """Feature -> value; see `Rows`."""
        record = self._read(index)
        return {
            name: _plain(record[name], self._features[name]) for name in self.columns
        }

    def picture(self, index: int) -> Picture:
        """The content of a record's picture; see `Rows`."""
        return bytes(self._read(index)[self._picture])

    def _read(self, index: int) -> Mapping[str, Any]:
        split, number = self._numbering.place(index)
        try:
            record = self._splits[split][number]
            return self._features.deserialize_example_np(record, decoders=self._raw)
        except Exception as error:  # of ArrayRecord or of protobuf, each in its own way
            if refusal_of_disk(error) is not None:
                raise  # the disk is broken, not the record
            raise BrokenPicture(
                f"record {self.key(index)} must be readable, got: "
                f"{' '.join(str(error).split())[:200]}; copy its file again."
            ) from error


def _open(path: Path) -> Any:
    """What TFDS knows of a data set; its folder may be that of the only version."""
    import tensorflow_datasets as tfds

    if not path.is_dir():
        raise MissingFileError(f"source.path must be a folder, got {path}; correct it.")
    folders = [path]
    if not (path / "dataset_info.json").is_file():
        folders = sorted(info.parent for info in path.rglob("dataset_info.json"))
    if len(folders) != 1:
        found = ", ".join(map(str, folders[:5])) or "none in it"
        raise UserError(
            "source.path must be a folder with dataset_info.json, as TFDS writes it, "
            f"got {path}; choose one of: {found}."
        )
    try:
        return tfds.builder_from_directory(folders[0]).info
    except Exception as error:  # TFDS raises whatever it meets
        raise UserError(
            f"source.path must be a data set of TFDS, got {folders[0]}: "
            f"{' '.join(str(error).split())[:200]}; prepare it again."
        ) from error


def _open_split(split: Any, file_format: Any) -> Sequence[bytes]:
    """The serialised records of a split."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    paths = [str(path) for path in split.filepaths]
    for path in paths:
        if not Path(path).is_file():
            raise MissingFileError(
                f"split {split.name} must have its file {path}, got none; copy it here."
            )
    if file_format.value == "array_record":
        return ArrayRecordDataSource(paths)
    if file_format.value == "tfrecord":
        return TfRecords(paths)
    raise UserError(
        "source.path must hold ArrayRecord or TFRecord files, got "
        f"{file_format.value}; prepare the data set with file_format='array_record'."
    )


def _choose_picture(
    name: str | None, features: Mapping[str, Any], images: Collection[str]
) -> str:
    """The feature of the pictures."""
    names = [name] if name is not None else list(images)
    if len(names) != 1 or names[0] not in images:
        raise UserError(
            "source.picture must be one of the Image features, "
            f"{', '.join(sorted(images)) or 'of which there are none'} among "
            f"{', '.join(sorted(features))}, got {name!r}; choose one."
        )
    if features[names[0]].np_dtype == np.float32:
        raise UserError(
            f"source.picture must be of 8 or 16 bits, got {names[0]!r} of 32; choose "
            "another feature."
        )
    return names[0]


def _plain(value: Any, feature: Any) -> Any:
    """A value in plain Python, with the names of labels."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(value, Mapping):
        return {name: _plain(part, feature[name]) for name, part in value.items()}
    if isinstance(feature, tfds.features.ClassLabel):
        labels = np.asarray(value)
        names = [feature.int2str(int(n)) if n >= 0 else None for n in labels.ravel()]
        return names if labels.ndim else names[0]
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(part, None) for part in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
