# SPDX-License-Identifier: Apache-2.0
"""Pictures and captions to a data set folder."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from tqdm import tqdm

from rfjax import schema
from rfjax.commands.flags import DataSetFields, Progress, Warn
from rfjax.data.encode import (
    EncodeConfig,
    Estimate,
    Share,
    encode_dataset,
    encode_share,
    estimate_encoding,
)
from rfjax.data.manifest import Manifest
from rfjax.errors import UserError
from rfjax.value_types import LocalPath, NonNegativeFloat, PositiveInt, checked


def _read_share(_: type, tokens: Sequence[Any]) -> Share:
    text = tokens[0].value
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(
            "--shard must be I/N, the I-th of N shares counted from 0, got "
            f"{text!r}; write for example 0/8."
        )
    return Share(int(found[1]), int(found[2]))


_SHARE = Parameter(
    name="--shard", converter=_read_share, n_tokens=1, accepts_keys=False, metavar="I/N"
)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A data set that `encode` wrote.

    Attributes:
      manifest: what is in it; None while shares of others are still to be encoded.
      out: its folder.
      warnings: what its user has to know.
    """

    manifest: Manifest | None
    out: Path | str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        warnings = [f"warning: {text}" for text in self.warnings]
        if self.manifest is None:
            done = "this share is done; the last share to finish makes the data set"
            return "\n".join([done, *warnings])
        counts = ", ".join(
            f"{n:,} {split}" for split, n in self.manifest.splits.items()
        )
        encoded = f"encoded {self.manifest.name}: {counts} examples in {self.out}"
        return "\n".join([encoded, *warnings])


@checked
def encode(
    fields: DataSetFields,
    *,
    out: LocalPath,
    workers: PositiveInt | None = None,
    share: Annotated[Share | None, _SHARE] = None,
    estimate: bool = False,
    price_per_hour: NonNegativeFloat | None = None,
    progress: Progress = True,
    warn: Warn = None,
) -> Encoded | Estimate:
    """Encodes pictures and captions into a data set folder.

    Finished work is kept in OUT.encoding until the data set is complete; after a kill
    or a failure the same command resumes it.

    Args:
      fields: what configs/data/NAME.py returns, as a dict.
      out: folder to write; must be new or empty, and appears only when complete.
      workers: processes; one for each core or GPU, if there is enough to do. The files
        do not depend on it.
      share: encode only the I-th of N shares, from 0, here; others run elsewhere, at
        the same time or not. The last to finish makes the data set.
      estimate: time a few batches, tell size, time and cost of the whole, and stop;
        nothing is written.
      price_per_hour: of this machine, for the estimate.
      progress: show a progress bar.
      warn: receives a line at once when a worker dies or a file has changed.

    Raises:
      UserError: wrong input, or too much of the data is broken; see
        `rfjax.data.encode.encode_dataset`.

    Example:
      rfjax encode --config=configs/data/emoji.py --out=data/emoji
    """
    config = schema.build(EncodeConfig, fields)
    if price_per_hour is not None and not estimate:
        raise UserError(
            f"--price-per-hour must come with --estimate, got {price_per_hour:g}; add "
            "it, or leave the price out."
        )
    if estimate and share is not None:
        raise UserError(
            f"--shard must come without --estimate, got {share.index}/{share.count}; "
            "estimate the whole, and leave the share out."
        )
    if estimate:
        return estimate_encoding(
            config, out=out, num_workers=workers, price_per_hour=price_per_hour
        )
    warnings: list[str] = []
    with contextlib.ExitStack() as stack:
        options = {
            "num_workers": workers,
            "report": warn,
            "warn": warnings.append,
            "progress": stack.enter_context(
                _bar(f"encode {config.name}", disable=not progress)
            ),
            "look_progress": stack.enter_context(
                _bar("look at pictures", disable=not progress)
            ),
        }
        if share is not None:
            manifest = encode_share(out, share, config=config, **options)
        else:
            manifest = encode_dataset(config, out=out, **options)
    return Encoded(manifest, out, tuple(warnings))


@contextlib.contextmanager
def _bar(name: str, *, disable: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, which appears when it is first told (done, total)."""
    bar = None

    def update(done: int, total: int) -> None:
        """Moves the bar."""
        nonlocal bar
        if bar is None:
            # What an earlier run has done says nothing about the rate of this one.
            bar = tqdm(
                desc=name, unit="example", initial=done, total=total, disable=disable
            )
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()  # its rate is not that of what follows

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
