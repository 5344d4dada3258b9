# SPDX-License-Identifier: Apache-2.0
"""Pictures and captions to a data set folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tqdm import tqdm

from rfjax import schema, whole_files
from rfjax.commands.flags import DataSetFields, Progress
from rfjax.data.encode import EncodeConfig, encode_dataset
from rfjax.data.manifest import Manifest
from rfjax.value_types import LocalPath, checked


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A data set that `encode` wrote.

    Attributes:
      manifest: what is in it.
      out: its folder.
      warnings: what its user has to know.
    """

    manifest: Manifest
    out: Path | str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ", ".join(
            f"{n:,} {split}" for split, n in self.manifest.splits.items()
        )
        encoded = f"encoded {self.manifest.name}: {counts} examples in {self.out}"
        return "\n".join([encoded, *(f"warning: {text}" for text in self.warnings)])


@checked
def encode(
    fields: DataSetFields, *, out: LocalPath, progress: Progress = True
) -> Encoded:
    """Encodes pictures and captions into a data set folder.

    Args:
      fields: what configs/data/NAME.py returns, as a dict.
      out: folder to write; must be new or empty, and appears only when complete.
      progress: show a progress bar.

    Example:
      rfjax encode --config=configs/data/emoji.py --out=data/emoji
    """
    config = schema.build(EncodeConfig, fields)
    whole_files.check_free(out, field="out")  # before there is a bar
    warnings: list[str] = []
    with tqdm(
        desc=f"encode {config.name}", unit="example", disable=not progress
    ) as bar:

        def update(done: int, total: int) -> None:
            """Moves the bar."""
            bar.total = total
            bar.update(done - bar.n)

        manifest = encode_dataset(
            config, out=out, progress=update, warn=warnings.append
        )
    return Encoded(manifest, out, tuple(warnings))
