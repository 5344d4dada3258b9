# SPDX-License-Identifier: Apache-2.0
"""Verification of a data set: what the manifest says, checked against the records.

Damaged or missing files raise at once. What the records hold is checked one by one, and
every problem is listed in the report.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image

from rfjax.data import shards
from rfjax.data.manifest import Manifest
from rfjax.data.sheet import Section, draw_sheet, save_picture

# Latents are trained on as if they had mean 0 and variance 1; this far off is harmless.
_MEAN_TOLERANCE = 0.1
_VARIANCE_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
      manifest: of the data set.
      latent_mean: over all training latents.
      latent_variance: over all training latents.
      num_captions: split -> number of different captions.
      problems: one sentence each; empty when all is well.
    """

    manifest: Manifest
    latent_mean: float
    latent_variance: float
    num_captions: dict[str, int]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        manifest = self.manifest
        num_bytes = sum(file.num_bytes for file in manifest.files)
        lines = [
            f"data set    {manifest.name} ({manifest.grade}), "
            f"{len(manifest.files)} files, {num_bytes / 1e6:.1f} MB, checksums match",
            *(
                f"{split:<11} {count:,} examples, {self.num_captions[split]:,} captions"
                for split, count in manifest.splits.items()
            ),
            f"latents     {list(manifest.latent_shape)} bfloat16, mean "
            f"{self.latent_mean:+.3f}, variance {self.latent_variance:.3f}",
            *(
                f"text        {encoder.name}: context [{encoder.length}, "
                f"{encoder.context_dim}] {manifest.text.layout}, pooled "
                f"[{encoder.pooled_dim}]"
                for encoder in manifest.text.encoders
            ),
            *(f"PROBLEM     {problem}" for problem in self.problems),
            "verified" if self.ok else f"{len(self.problems)} problems",
        ]
        return "\n".join(lines)


def verify(
    root: str | os.PathLike, *, picture: str | os.PathLike | None = None
) -> VerifyReport:
    """Checks a whole data set, and draws a contact sheet of it.

    Args:
      root: the data folder.
      picture: where to write the sheet, e.g. "sheet.png"; none when None.

    Returns:
      A report; `str(report)` is for people.

    Raises:
      MissingFileError: the folder, the manifest or a file is missing.
      UserError: a file is truncated or altered, or the manifest is inconsistent.
    """
    manifest = shards.check_shards(root, full=True)
    problems: list[str] = []
    captions: dict[str, set[str]] = {}
    moments = {}
    for split, count in manifest.splits.items():
        source = shards.open_split(root, split)
        if len(source) != count:
            problems.append(f"{split} has {len(source)} records instead of {count}.")
        captions[split] = set()
        total, total_squares, size = 0.0, 0.0, 0
        for index in range(len(source)):
            record = source[index]
            problems += _check_record(record, manifest, f"{split}[{index}]")
            captions[split].add(record["caption"].decode())
            latents = record["latents"].astype(np.float64)
            total += latents.sum()
            total_squares += np.square(latents).sum()
            size += latents.size
        mean = total / size
        moments[split] = (mean, total_squares / size - mean**2)
    mean, variance = moments["train"]
    if not abs(mean) <= _MEAN_TOLERANCE:
        problems.append(f"latents of train have mean {mean:.3f} instead of 0.")
    if not abs(variance - 1.0) <= _VARIANCE_TOLERANCE:
        problems.append(f"latents of train have variance {variance:.3f} instead of 1.")
    shared = captions["train"] & captions.get("validation", set())
    if shared:
        problems.append(
            f"{len(shared)} captions are in train and validation, e.g. {min(shared)!r}."
        )
    if picture is not None:
        save_picture(contact_sheet(root), picture)
    return VerifyReport(
        manifest=manifest,
        latent_mean=float(mean),
        latent_variance=float(variance),
        num_captions={split: len(texts) for split, texts in captions.items()},
        problems=tuple(problems),
    )


def contact_sheet(
    root: str | os.PathLike, *, columns: int = 8, rows: int = 4
) -> Image.Image:
    """Draws examples of both splits, decoded from their latents, with captions.

    Args:
      root: the data folder.
      columns: pictures in a row.
      rows: rows of training pictures; half as many of validation pictures follow.

    Returns:
      A Pillow picture.
    """
    manifest = shards.read_manifest(root)
    codec = shards.read_codec(root)
    sections = []
    for split, num_rows in (("train", rows), ("validation", max(1, rows // 2))):
        source = shards.open_split(root, split)
        count = min(len(source), num_rows * columns)
        # Spread over the split: neighbours are alike.
        records = [source[len(source) * i // count] for i in range(count)]
        sections.append(
            Section(
                title=f"{split}: {count} of {len(source):,}",
                images=codec.decode(np.stack([r["latents"] for r in records])),
                captions=[record["caption"].decode() for record in records],
            )
        )
    return draw_sheet(
        sections, title=manifest.name, footer=manifest.licence, columns=columns
    )


def _check_record(
    record: Mapping[str, Any], manifest: Manifest, where: str
) -> list[str]:
    """Returns what is wrong with one record."""
    expected = {"latents": manifest.latent_shape}
    problems = []
    for encoder in manifest.text.encoders:
        length = int(record[f"{encoder.prefix}context_length"])
        if not 1 <= length <= encoder.length:
            problems.append(
                f"{where}: context_length is {length}, outside 1..{encoder.length}."
            )
        padded = manifest.text.layout == "padded"
        rows = encoder.length if padded else length
        expected[f"{encoder.prefix}context"] = (rows, encoder.context_dim)
        expected[f"{encoder.prefix}pooled"] = (encoder.pooled_dim,)
    for name, shape in expected.items():
        value = record[name]
        if value.shape != shape or value.dtype != ml_dtypes.bfloat16:
            problems.append(
                f"{where}: {name} is {value.shape} {value.dtype} instead of {shape} "
                "bfloat16."
            )
        elif not np.isfinite(value.astype(np.float32)).all():
            problems.append(f"{where}: {name} holds values that are not finite.")
    return problems
