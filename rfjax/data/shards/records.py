# SPDX-License-Identifier: Apache-2.0
"""Decoding of stored records without copies.

A record is a serialised `tf.train.Example` whose every feature is one byte string, as
TFDS writes tensors with `encoding="bytes"`. The general decoder of TFDS copies a record
three times and parses every feature again; this one finds where the byte strings lie
and returns arrays that look into the record. The result is the same.

Wire format: https://protobuf.dev/programming-guides/encoding. The messages nest as
Example{1: Features{1: entry{1: name, 2: Feature{1: BytesList{1: value}}}}}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rfjax.data.numbering import Numbering
from rfjax.errors import UserError

_BYTES_LIST = 1  # field of Feature; the others hold floats and integers


class RecordSource(Sequence):
    """A TFDS data source that decodes its records without copies.

    Args:
      raw: indexable source of serialised records.
      tensors: feature name -> (shape, dtype); None stands for one unknown dim. Features
        that are not named here are returned as bytes.
      shards: (path, number of records) of each file, in order.
    """

    def __init__(
        self,
        raw: Sequence[bytes],
        *,
        tensors: Mapping[str, tuple[tuple, np.dtype]],
        shards: Sequence[tuple[str, int]],
    ):
        self._raw = raw
        self._paths = [path for path, _ in shards]
        self._numbering = Numbering(count for _, count in shards)
        self._tensors = {
            name: (tuple(-1 if dim is None else dim for dim in shape), np.dtype(dtype))
            for name, (shape, dtype) in tensors.items()
        }

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | bytes]:
        """Returns feature name -> read-only array, or bytes.

        Raises:
          UserError: the record is damaged; names the shard and the record in it.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._decode(self._raw[index])
        except (OSError, MemoryError):  # of the machine, not of the record
            raise
        except Exception as error:  # the reader raises several kinds, decoding others
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.name_of(index)} is damaged ({type(error).__name__}: {reason}); "
                "`rfjax verify` looks at every file. Copy it again, or make the data "
                "set again with `rfjax encode`."
            ) from error

    def name_of(self, index: int) -> str:
        """The record in words: its number in its shard, and the path of that."""
        shard, number = self._numbering.place(index)
        return f"record {number} of data file {self._paths[shard]}"

    def _decode(self, record: bytes) -> dict[str, np.ndarray | bytes]:
        values = {}
        for name, start, stop in _byte_features(record):
            if name not in self._tensors:
                values[name] = record[start:stop]
                continue
            shape, dtype = self._tensors[name]
            count = (stop - start) // dtype.itemsize
            values[name] = np.frombuffer(record, dtype, count, start).reshape(shape)
        return values


def _byte_features(record: bytes) -> Iterator[tuple[str, int, int]]:
    """Yields (name, start, stop) of each feature's byte string in the record.

    Straight on rather than in general: this runs for every feature of every record.
    """
    entry, end = _contents(record, 0)
    while entry < end:
        key, entry_end = _contents(record, entry)
        start, value = _contents(record, key)
        name = record[start:value].decode()
        kind, _ = _contents(record, value)
        if record[kind] >> 3 != _BYTES_LIST:
            raise UserError(
                f"feature {name} of a stored record is not a byte string, as rfjax "
                "writes them; make the data set again with `rfjax encode`."
            )
        text, list_end = _contents(record, kind)
        start, stop = _contents(record, text)
        if not stop == list_end == entry_end <= end:
            raise ValueError(f"feature {name} ends at a wrong place")
        yield name, start, stop
        entry = entry_end


def _contents(record: bytes, position: int) -> tuple[int, int]:
    """(start, stop) of the contents of the field at a position.

    A field is its tag (number * 8 + wire type, here always 2), its length and contents.
    """
    byte = record[position + 1]
    position += 2
    length, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = record[position]
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
    return position, position + length
