# SPDX-License-Identifier: Apache-2.0
"""Runs that read several encoded data sets at once: `data.kind` is `mixture`.

    config.data = {
        "kind": "mixture",
        "parts": [
            {"path": "data/photos", "weight": 0.7},
            {"path": "data/drawings", "weight": 0.3},
        ],
    }

Each batch has its examples from all parts, in the proportion of the weights, and so has
every bucket. A part is shuffled by itself and begins again when it ends: one of a large
weight is seen more often. Validation reads all parts once, whatever their weights.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rfjax import schema
from rfjax.checksums import digest
from rfjax.data.base import Dataset
from rfjax.data.joined import JoinedRecords
from rfjax.data.manifest import EncoderSpec, Manifest
from rfjax.data.order import Group, groups_of
from rfjax.data.reading import Records
from rfjax.data.shards import (
    CODEC_FILE,
    check_shards,
    open_split,
    read_codec,
    read_empty_caption,
    read_manifest,
)
from rfjax.encoders.images import ImageCodec
from rfjax.errors import UserError
from rfjax.timestep_levels import NUM_LEVELS
from rfjax.value_types import InputPath, PositiveFloat

# Of two encodings of no caption: bfloat16 rounds to 3 digits, machines to the last.
_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One data set of a mixture.

    Attributes:
      path: folder that holds rfjax.json.
      weight: share of the training examples that come from it; all weights together
        are 1, or whatever they add up to.
      name: of its validation loss, `val/loss_NAME`; that of the data set when empty.
    """

    path: InputPath
    weight: PositiveFloat = 1.0
    name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig(Dataset):
    """Several encoded data sets, mixed by weight.

    Attributes:
      parts: the data sets, which must have been encoded alike.
    """

    # Weights are part of what the data is: a run that has begun keeps them.
    parts: tuple[PartConfig, ...] = schema.changeable()

    def __post_init__(self):
        super().__post_init__()
        if not self.parts:
            raise UserError(
                "data.parts must hold at least one data set, got none; write "
                "[{'path': 'data/NAME', 'weight': 1.0}]."
            )

    def manifest(self) -> Manifest:
        """What the parts have in common, how many examples there are, and of what."""
        manifests = self._manifests()
        first = next(iter(manifests.values()))
        buckets = sorted({s[:2] for m in manifests.values() for s in m.latent.shapes})
        splits, licences = collections.Counter(), collections.Counter()
        for manifest in manifests.values():
            splits.update(manifest.splits)
            licences.update(manifest.licences)
        weights = self.weights()
        return Manifest(
            name="_and_".join(manifests),
            grade="mixture",
            splits=dict(splits),
            latent=dataclasses.replace(
                first.latent, buckets=tuple(buckets) if len(buckets) > 1 else ()
            ),
            text=first.text,
            licence=" ".join(dict.fromkeys(m.licence for m in manifests.values())),
            creation={
                "codec": first.creation.get("codec"),
                "parts": [
                    {
                        "name": name,
                        "weight": weights[name],
                        "data": digest(manifest.to_json()),
                    }
                    for name, manifest in manifests.items()
                ],
            },
            licences=dict(licences),
        )

    def records(self, split: str) -> Records:
        """The records of one part after those of the other."""
        manifests = self._manifests().values()
        parts = [
            open_split(part.path, split)
            for part, manifest in zip(self.parts, manifests, strict=True)
            if split in manifest.splits
        ]
        if not parts:
            raise UserError(
                f"data.parts must have the split {split!r}, and none of them has it; "
                "encode them again with a larger validation_fraction."
            )
        return JoinedRecords(parts)

    def groups(self, split: str) -> tuple[Group, ...]:
        """The records of a split by part, and by bucket within each."""
        return tuple(
            dataclasses.replace(group, part=name)
            for name, manifest in self._manifests().items()
            if split in manifest.splits
            for group in groups_of(manifest, split)
        )

    def weights(self) -> Mapping[str, float]:
        """Name of a part -> its weight."""
        names = self._manifests()
        return dict(zip(names, (part.weight for part in self.parts), strict=True))

    def check(self) -> None:
        """Checks the files of all parts, and that they have one empty caption."""
        for part in self.parts:
            check_shards(part.path)
        first, *others = self.parts
        expected = read_empty_caption(first.path)
        for part in others:
            for name, value in read_empty_caption(part.path).items():
                if not np.allclose(
                    value.astype(np.float32),
                    expected[name].astype(np.float32),
                    rtol=_TOLERANCE,
                    atol=_TOLERANCE,
                ):
                    raise UserError(
                        "data.parts must have the same empty caption, and those of "
                        f"{first.path} and {part.path} differ in {name}; encode them "
                        "with the same text encoders."
                    )

    def empty_caption(self) -> Mapping[str, np.ndarray]:
        """That of the first part, which the others have too."""
        return read_empty_caption(self.parts[0].path)

    def codec(self) -> ImageCodec:
        """That of the first part, which the others have too."""
        self._manifests()
        return read_codec(self.parts[0].path, folders=self.encoders)

    def folders(self) -> tuple[str, ...]:
        """Those of the parts."""
        return tuple(part.path for part in self.parts)

    def moved_to(self, folders: Sequence[str]) -> MixtureConfig:
        """The same parts in other folders."""
        parts = tuple(
            dataclasses.replace(part, path=folder)
            for part, folder in zip(self.parts, folders, strict=True)
        )
        return dataclasses.replace(self, parts=parts)

    def _manifests(self) -> dict[str, Manifest]:
        """Name of each part -> its manifest, once they are known to fit together."""
        manifests = [read_manifest(part.path) for part in self.parts]
        names = [
            part.name or manifest.name
            for part, manifest in zip(self.parts, manifests, strict=True)
        ]
        levels = [f"t{level}" for level in range(NUM_LEVELS)]
        for name in names:
            if names.count(name) > 1 or name in levels or not name.isidentifier():
                raise UserError(
                    "data.parts must have different names that are Python "
                    f"identifiers other than {levels[0]} .. {levels[-1]}, got "
                    f"{', '.join(names)}; give each part a name."
                )
        for part, manifest in zip(self.parts[1:], manifests[1:], strict=True):
            _check_alike(self.parts[0].path, manifests[0], part.path, manifest)
        return dict(zip(names, manifests, strict=True))


def _check_alike(
    first_path: str, first: Manifest, other_path: str, other: Manifest
) -> None:
    """Raises UserError, naming the field, unless one model can read both data sets."""
    for name, one, another in _differences(_specs_of(first), _specs_of(other), ""):
        raise UserError(
            f"data.parts must have been encoded alike, got {name} {one!r} in "
            f"{first_path} and {another!r} in {other_path}; encode them with the same "
            "codec and text encoders, or train on one of them."
        )


def _specs_of(manifest: Manifest) -> dict[str, Any]:
    """What must be the same in all parts, by the names of the manifest's fields."""
    latent = dataclasses.replace(manifest.latent, buckets=())
    codec = [file.sha256 for file in manifest.files if file.path == CODEC_FILE]
    # Weights that are known by a digest may have been in different folders.
    encoders = tuple(
        dataclasses.replace(encoder, fields={}) if encoder.weights else encoder
        for encoder in manifest.text.encoders
    )
    return {
        "latent": latent,
        # With its own arrays, unless those are known by a digest already.
        CODEC_FILE: codec if not latent.codec_weights else [],
        "text": dataclasses.replace(manifest.text, encoders=encoders),
    }


def _differences(
    first: Any, other: Any, name: str
) -> Iterator[tuple[str, object, object]]:
    """(field, value, other value) of what differs, the innermost fields that do."""
    if dataclasses.is_dataclass(first) and type(first) is type(other):
        first, other = vars(first), vars(other)
    is_list = isinstance(first, tuple) and isinstance(other, tuple)
    if is_list and len(first) == len(other) and any(map(_is_encoder, first)):
        first, other = dict(enumerate(first)), dict(enumerate(other))
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        for key in first | other:
            inner = f"{name}.{key}".lstrip(".")
            yield from _differences(first.get(key), other.get(key), inner)
    elif first != other:
        yield name, first, other


def _is_encoder(value: Any) -> bool:
    return isinstance(value, EncoderSpec)
