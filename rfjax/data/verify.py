# SPDX-License-Identifier: Apache-2.0
"""Verification of a data set: what the manifest says, checked against the records.

Files, records, the empty caption and text states are checked one by one, and every
problem is listed in the report.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rfjax.data import shards
from rfjax.data.manifest import NO_CODEC, EncoderSpec, Manifest, StoredFile
from rfjax.data.order import groups_of
from rfjax.data.sheet import Section, draw_sheet, save_picture
from rfjax.data.stored_text import compare_states
from rfjax.errors import MissingFileError, MissingPackageError, UserError

MOST_PROBLEMS = 50  # that are printed
MOST_ENCODED = 8  # captions of a split whose states are computed again

# Latents are trained on as if they had mean 0 and variance 1; this far off is harmless.
_MEAN_TOLERANCE = 0.1
_VARIANCE_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
      manifest: of the data set.
      latent_mean: over all training latents that are sound, as they are drawn from
        their posterior where it is stored; NaN if there are none.
      latent_variance: likewise.
      num_captions: split -> number of different captions.
      problems: one sentence each, those of single records last; empty when all is well.
      notes: what could not be checked, one sentence each.
      picture: the contact sheet, if one was drawn.
    """

    manifest: Manifest
    latent_mean: float
    latent_variance: float
    num_captions: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    picture: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        manifest = self.manifest
        num_bytes = sum(file.num_bytes for file in manifest.files)
        size = f"{len(manifest.files)} files, {num_bytes / 1e6:.1f} MB"
        num_hidden = len(self.problems) - MOST_PROBLEMS
        lines = [
            f"data set    {manifest.name} ({manifest.grade}), {size}"
            f"{', checksums match' if self.ok else ''}",
            *(
                f"{split:<11} {count:,} examples, {self.num_captions[split]:,} captions"
                f"{_describe_buckets(manifest, split)}"
                for split, count in manifest.splits.items()
            ),
            f"latents     {list(manifest.latent_shape)} bfloat16"
            f"{' with log-variance' if manifest.latent.has_variance else ''}, mean "
            f"{self.latent_mean:+.3f}, variance {self.latent_variance:.3f}",
            *(
                f"text        {encoder.name}: "
                f"{_describe_features(encoder, manifest.text.layout)}"
                for encoder in manifest.text.encoders
            ),
            *(f"NOTE        {note}" for note in self.notes),
            *(f"PROBLEM     {problem}" for problem in self.problems[:MOST_PROBLEMS]),
            *([f"            and {num_hidden:,} more"] if num_hidden > 0 else []),
            *([f"contact sheet: {self.picture}"] if self.picture else []),
            "verified" if self.ok else f"{len(self.problems):,} problems",
        ]
        return "\n".join(lines)


def verify(
    root: str | os.PathLike,
    *,
    picture: str | os.PathLike | None = None,
    encoders: Sequence[str] = (),
) -> VerifyReport:
    """Checks a whole data set, and draws a contact sheet of it.

    Args:
      root: the data folder.
      picture: where to write the sheet, e.g. "sheet.png"; none when None, or when
        files or records are damaged.
      encoders: folders where the weights of text encoders and autoencoder may be now.

    Returns:
      A report; `str(report)` is for people.

    Raises:
      MissingFileError: there is no data set.
      UserError: its manifest cannot be read.
    """
    manifest = shards.read_manifest(root)
    damage = shards.find_damage(root, manifest)
    splits = {split: _Split() for split in manifest.splits}
    found, notes = [], []
    try:
        shards.check_features(root, manifest)
    except (MissingFileError, UserError) as error:
        damage.append(str(error))
    else:
        for file in manifest.files:
            if file.split in splits and (Path(root) / file.path).is_file():
                splits[file.split].read(root, manifest, file)
        found, notes = _check_text(
            root, manifest, list(splits.values()), encoders=encoders
        )
    bad_records = [problem for split in splits.values() for problem in split.problems]
    (notes if manifest.latent.codec_scale else found).extend(
        _check_moments(splits["train"])
    )
    found += _check_captions(splits)
    drawn = None
    if picture is not None and not damage and not bad_records:
        try:
            save_picture(contact_sheet(root, encoders=encoders), picture)
            drawn = Path(picture)
        except UserError as error:  # no codec, a damaged one, or weights elsewhere
            elsewhere = isinstance(error, MissingFileError | MissingPackageError)
            is_harmless = elsewhere or manifest.latent.codec == NO_CODEC
            (notes if is_harmless else found).append(f"no contact sheet: {error}")
    mean, variance = splits["train"].moments
    return VerifyReport(
        manifest=manifest,
        latent_mean=mean,
        latent_variance=variance,
        num_captions={split: len(read.captions) for split, read in splits.items()},
        problems=(*damage, *found, *bad_records),
        notes=tuple(notes),
        picture=drawn,
    )


def _describe_buckets(manifest: Manifest, split: str) -> str:
    """How many examples of a split each bucket has, if there are several."""
    if not manifest.latent.buckets:
        return ""
    counts = [
        f"{group.num_records:,} of {group.bucket[0]}x{group.bucket[1]}"
        for group in groups_of(manifest, split)
    ]
    return f": {', '.join(counts)}"


def _describe_features(encoder: EncoderSpec, layout: str) -> str:
    """What a record holds of a text encoder."""
    features = []
    if encoder.context_dim:
        features += [f"context [{encoder.length}, {encoder.context_dim}] {layout}"]
    if encoder.pooled_dim:
        features += [f"pooled [{encoder.pooled_dim}]"]
    return ", ".join(features)


class _Split:
    """What reading the records of one split finds.

    Attributes:
      captions: all different ones.
      problems: one sentence each.
      examples: (what it is, caption, record) of the first sound record of each shard,
        at most `MOST_ENCODED`.
    """

    def __init__(self):
        self.captions: set[str] = set()
        self.problems: list[str] = []
        self.examples: list[tuple[str, str, Mapping[str, Any]]] = []
        self._total, self._total_squares, self._size = 0.0, 0.0, 0

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance of all sound latents, as drawn; NaN if there are none."""
        if not self._size:
            return math.nan, math.nan
        mean = self._total / self._size
        return float(mean), float(self._total_squares / self._size - mean**2)

    def read(
        self, root: str | os.PathLike, manifest: Manifest, file: StoredFile
    ) -> None:
        """Reads one shard; what is wrong with a record does not stop it."""
        source, has_example = shards.open_shards(root, manifest, [file]), False
        for number in range(file.num_records):
            where = f"record {number} of {file.path}"
            try:
                record = source[number]
            except UserError as error:
                self.problems.append(str(error))
                continue
            caption = record.get("caption", b"").decode(errors="replace")
            self.captions.add(caption)
            found = shards.problems_of_record(record, manifest)
            self.problems += [f"{where}: {problem}" for problem in found]
            if found:
                continue
            latents = record["latents"].astype(np.float64)
            self._total += latents.sum()
            self._total_squares += np.square(latents).sum()
            if manifest.latent.has_variance:
                log_variance = record["log_variance"].astype(np.float64)
                self._total_squares += np.exp(log_variance).sum()
            self._size += latents.size
            if not has_example and len(self.examples) < MOST_ENCODED:
                has_example = True
                self.examples.append((where, caption, record))


def _check_text(
    root: str | os.PathLike,
    manifest: Manifest,
    splits: Sequence[_Split],
    *,
    encoders: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Checks names of encoders, the empty caption, and the states of some captions."""
    for field in ("name", "prefix"):
        values = [getattr(encoder, field) for encoder in manifest.text.encoders]
        if len(set(values)) < len(values):
            return [f"{field} of text.encoders must differ, got {values}."], []
    problems, empty = [], []
    try:
        empty = [("the empty caption", "", shards.read_empty_caption(root))]
    except (MissingFileError, UserError) as error:
        problems.append(str(error))
    examples = [example for split in splits for example in split.examples]
    found, notes = compare_states(manifest, empty + examples, folders=encoders)
    return problems + found, notes


def _check_moments(train: _Split) -> list[str]:
    """How far latents are from what training assumes.

    A codec that was fitted to the pictures must meet it; one whose scale was fixed
    before may be off.
    """
    mean, variance = train.moments
    problems = []
    if not abs(mean) <= _MEAN_TOLERANCE:
        problems.append(f"latents of train have mean {mean:.3f} instead of 0.")
    if not abs(variance - 1.0) <= _VARIANCE_TOLERANCE:
        problems.append(f"latents of train have variance {variance:.3f} instead of 1.")
    return problems


def _check_captions(splits: Mapping[str, _Split]) -> list[str]:
    if "validation" not in splits:
        return []
    shared = splits["train"].captions & splits["validation"].captions - {""}
    if not shared:
        return []
    return [
        f"{len(shared)} captions are in train and validation, e.g. {min(shared)!r}."
    ]


def contact_sheet(
    root: str | os.PathLike,
    *,
    columns: int = 8,
    rows: int = 4,
    encoders: Sequence[str] = (),
) -> Image.Image:
    """Draws examples of both splits, decoded from their latents, with captions.

    Args:
      root: the data folder.
      columns: pictures in a row.
      rows: rows of training pictures; half as many of validation pictures follow.
      encoders: folders where the weights of the codec may be now.

    Returns:
      A Pillow picture.
    """
    manifest = shards.read_manifest(root)
    codec = shards.read_codec(root, folders=encoders)
    decode = getattr(codec, "decode_preview", codec.decode)
    sections = []
    for split, num_rows in (("train", rows), ("validation", max(1, rows // 2))):
        source = shards.open_split(root, split)
        count = min(len(source), num_rows * columns)
        # Spread over the split: neighbours are alike.
        records = [source[len(source) * i // count] for i in range(count)]
        sections.append(
            Section(
                title=f"{split}: {count} of {len(source):,}",
                images=[decode(record["latents"][None])[0] for record in records],
                captions=[record["caption"].decode() for record in records],
            )
        )
    return draw_sheet(
        sections, title=manifest.name, footer=manifest.licence, columns=columns
    )
