# SPDX-License-Identifier: Apache-2.0
"""What an export needs beside its weights to draw a picture: codec and text states.

    OUT/codec.npz        what the codec's `decoding` reads
    OUT/text_states.npz  some captions of the data set, encoded, and the empty caption

Both are plain arrays. Text states are there so that a picture needs no text encoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rfjax.data.conditioning import join_captions
from rfjax.encoders.images import IMAGE_CODECS, ImageCodec
from rfjax.errors import MissingFileError, UserError
from rfjax.export.card import Run
from rfjax.export.local_names import without_folders

CODEC_FILE = "codec.npz"
TEXT_FILE = "text_states.npz"
NUM_CAPTIONS = 4


def write(folder: Path, run: Run) -> str:
    """Writes both files, if the data set of the run is there and rfjax decodes it.

    Returns:
      Python code that decodes `latents` to `images`; empty if nothing was written.

    Raises:
      UserError: the data set is damaged.
    """
    if run.manifest is None or run.manifest.latent.codec not in IMAGE_CODECS:
        return ""
    try:
        codec = run.data.codec()
        records = run.data.records("train")
        empty = run.data.empty_caption()
    except MissingFileError:  # of a data set of which there is only the manifest
        return ""
    count = min(NUM_CAPTIONS, len(records))
    chosen = [records[len(records) * i // count] for i in range(count)]
    joined = join_captions([*chosen, empty], run.manifest, dtype=np.float32)
    context, pooled = joined["context"], joined["pooled"]
    save_codec(codec, folder / CODEC_FILE)
    np.savez(
        folder / TEXT_FILE,
        captions=np.array([record["caption"].decode() for record in chosen]),
        context=context[:-1],
        pooled=pooled[:-1],
        empty_context=context[-1],
        empty_pooled=pooled[-1],
    )
    if not (np.isfinite(context).all() and np.isfinite(pooled).all()):
        raise UserError(
            f"text states of data set {run.manifest.name} must be finite, got NaN or "
            "infinity; `rfjax verify` lists the records."
        )
    return codec.decoding


def save_codec(codec: ImageCodec, path: Path) -> None:
    """Writes codec.npz without the folders of this machine that it may name."""
    codec.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    texts = {name: str(each) for name, each in arrays.items() if each.dtype.kind == "U"}
    if texts:
        np.savez(path, **arrays | without_folders(texts))
