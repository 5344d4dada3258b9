# SPDX-License-Identifier: Apache-2.0
"""What a finished shard is, and what was noticed while it was encoded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.encoders.text import CutCaptions, EncodedText, UnknownWords
from rfjax.errors import UserError

MOST_NAMED = 3  # records that a message names


@dataclasses.dataclass(frozen=True)
class Broken:
    """A record that is left out, since nothing can be learnt from it.

    Attributes:
      key: its name in the source.
      reason: what is wrong.
    """

    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Credit:
    """Whose a record is: of a row of credits.csv."""

    key: str
    licence: str
    attribution: str


@dataclasses.dataclass
class Notes:
    """Of one shard, or of several together.

    Attributes:
      num_records: in the file.
      num_bytes: of the file.
      sha256: of the file; empty of several.
      broken: records that were left out.
      empty_captions: kind of caption -> records that have none.
      cut: name of a text encoder -> captions that it cut.
      unknown_words: name of a text encoder -> words that it does not know.
      credits: of each record, in order.
    """

    num_records: int = 0
    num_bytes: int = 0
    sha256: str = ""
    broken: list[Broken] = dataclasses.field(default_factory=list)
    empty_captions: dict[str, int] = dataclasses.field(default_factory=dict)
    cut: dict[str, CutCaptions] = dataclasses.field(default_factory=dict)
    unknown_words: dict[str, UnknownWords] = dataclasses.field(default_factory=dict)
    credits: list[Credit] = dataclasses.field(default_factory=list)

    def note_text(
        self, encoder: str, captions: Sequence[str], text: EncodedText, *, length: int
    ) -> None:
        """Counts what an encoder, by its name, did not take of captions."""
        words = self.unknown_words.setdefault(encoder, UnknownWords(encoder))
        cut = self.cut.setdefault(encoder, CutCaptions(encoder, length))
        for each in (words, cut):
            each.add(captions, text)

    def merge(self, other: Notes) -> None:
        """Adds the counts of another shard; its credits stay with it."""
        self.num_records += other.num_records
        self.num_bytes += other.num_bytes
        self.broken += other.broken
        for kind, count in other.empty_captions.items():
            self.empty_captions[kind] = self.empty_captions.get(kind, 0) + count
        self._add_counts(other._counts())

    def sentences(self) -> list[str]:
        """What the user has to know, one sentence each."""
        said = []
        if self.broken:
            said.append(f"left out {describe_broken(self.broken)}")
        for kind, count in self.empty_captions.items():
            if count:
                name = kind if kind == "caption" else f"{kind} caption"
                said.append(f"{count:,} of {self.num_records:,} have no {name}.")
        lost = [*self.cut.values(), *self.unknown_words.values()]
        return said + [sentence for each in lost if (sentence := str(each))]

    def write(self, path: Path) -> None:
        """Writes them as JSON; the file appears whole."""
        counts = self._counts()
        plain = dataclasses.replace(self, cut={}, unknown_words={})
        whole_files.write_json(path, dataclasses.asdict(plain) | counts)

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Reads what `write` wrote.

        Raises:
          FileNotFoundError: no such file.
          UserError: not such a file.
        """
        fields = whole_files.read_json(path)
        try:
            counts = {name: fields.pop(name) for name in ("cut", "unknown_words")}
            notes = cls(
                **fields
                | {
                    "broken": [Broken(**each) for each in fields["broken"]],
                    "credits": [Credit(**each) for each in fields["credits"]],
                }
            )
            notes._add_counts(counts)
            return notes
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} must hold what a shard is, got something else ({error!r}); "
                "remove it, and run the same command again."
            ) from error

    def _counts(self) -> dict[str, dict[str, Any]]:
        """What encoders did not take, as plain values."""
        return {
            "cut": {name: each.counts for name, each in self.cut.items()},
            "unknown_words": {n: each.counts for n, each in self.unknown_words.items()},
        }

    def _add_counts(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds what `_counts` of others gave."""
        for encoder, each in counts["cut"].items():
            empty = CutCaptions(encoder, each["length"])
            self.cut.setdefault(encoder, empty).add_counts(each)
        for encoder, each in counts["unknown_words"].items():
            words = self.unknown_words.setdefault(encoder, UnknownWords(encoder))
            words.add_counts(each)


def describe_broken(broken: Sequence[Broken]) -> str:
    """Which records are left out, the first of them by name, and why."""
    named = "; ".join(f"{each.key}: {each.reason}" for each in broken[:MOST_NAMED])
    more = f"; and {len(broken) - MOST_NAMED:,} more" * (len(broken) > MOST_NAMED)
    records = (
        "1 broken record" if len(broken) == 1 else f"{len(broken):,} broken records"
    )
    return f"{records} ({named}{more})"


def check_broken(broken: Iterable[Broken], *, of: int, max_broken: float) -> None:
    """Raises UserError if more than a share of some records is broken."""
    broken = list(broken)
    if len(broken) > max_broken * of:
        least = math.ceil(100 * len(broken) / of) / 100
        raise UserError(
            f"max_broken must allow for what is broken, got {max_broken:g} and "
            f"{describe_broken(broken)} of {of:,}; mend them, or allow for more with "
            f"--config.max_broken={least:g}."
        )
