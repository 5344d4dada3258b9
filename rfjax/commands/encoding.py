# SPDX-License-Identifier: Apache-2.0
"""Pictures and captions to a data set folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rfjax import schema
from rfjax.data.encode import EncodeConfig, encode_dataset
from rfjax.data.manifest import Manifest


def encode(
    fields: Mapping[str, Any], *, out: Path | str, progress: bool = True
) -> Manifest:
    """Encodes pictures and captions into a data set folder.

    Args:
      fields: what configs/data/NAME.py returns, as a dict.
      out: folder to write; must be new or empty, and appears only when complete.
      progress: show a progress bar.
    """
    config = schema.build(EncodeConfig, fields)
    with tqdm(
        desc=f"encode {config.name}", unit="example", disable=not progress
    ) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return encode_dataset(config, out=out, progress=update)
