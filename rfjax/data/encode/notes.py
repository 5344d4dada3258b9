# SPDX-License-Identifier: Apache-2.0
"""What a finished shard is, and what was noticed while it was encoded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rfjax import whole_files
from rfjax.encoders.text import EncodedText, UnknownWords
from rfjax.errors import UserError

MOST_NAMED = 3  # records that a message names


@dataclasses.dataclass
class Cut:
    """Captions that were longer than a text encoder takes.

    Attributes:
      num_captions: so many were cut.
      most_tokens: of the longest of them.
      example: one of them.
    """

    num_captions: int = 0
    most_tokens: int = 0
    example: str = ""

    def add(self, captions: Sequence[str], text: EncodedText, *, length: int) -> None:
        """Counts captions of which the encoder took only `length` tokens."""
        if text.num_tokens is None:
            return
        for caption, num_tokens in zip(captions, text.num_tokens, strict=True):
            if num_tokens > length:
                self.merge(Cut(1, int(num_tokens), caption))

    def merge(self, other: Cut) -> None:
        """Adds what was counted elsewhere."""
        self.num_captions += other.num_captions
        self.most_tokens = max(self.most_tokens, other.most_tokens)
        self.example = self.example or other.example


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
    cut: dict[str, Cut] = dataclasses.field(default_factory=dict)
    unknown_words: dict[str, UnknownWords] = dataclasses.field(default_factory=dict)
    credits: list[Credit] = dataclasses.field(default_factory=list)

    def note_text(
        self, encoder: str, captions: Sequence[str], text: EncodedText, *, length: int
    ) -> None:
        """Counts what an encoder, by its name, did not take of captions."""
        words = self.unknown_words.setdefault(encoder, UnknownWords(encoder))
        words.add(captions, text)
        self.cut.setdefault(encoder, Cut()).add(captions, text, length=length)

    def merge(self, other: Notes) -> None:
        """Adds the counts of another shard; its credits stay with it."""
        self.num_records += other.num_records
        self.num_bytes += other.num_bytes
        self.broken += other.broken
        for kind, count in other.empty_captions.items():
            self.empty_captions[kind] = self.empty_captions.get(kind, 0) + count
        for encoder, cut in other.cut.items():
            self.cut.setdefault(encoder, Cut()).merge(cut)
        for encoder, words in other.unknown_words.items():
            mine = self.unknown_words.setdefault(encoder, UnknownWords(encoder))
            mine.add_counts(words.counts)

    def sentences(self) -> list[str]:
        """What the user has to know, one sentence each."""
        said = []
        if self.broken:
            said.append(f"left out {describe_broken(self.broken)}")
        for kind, count in self.empty_captions.items():
            if count:
                name = kind if kind == "caption" else f"{kind} caption"
                said.append(f"{count:,} of {self.num_records:,} have no {name}.")
        for encoder, cut in self.cut.items():
            if cut.num_captions:
                said.append(
                    f"text encoder {encoder} cut {cut.num_captions:,} captions that "
                    f"were too long for it, of up to {cut.most_tokens} tokens, such as "
                    f"{cut.example[:80]!r}."
                )
        return said + [
            str(words) for words in self.unknown_words.values() if str(words)
        ]

    def write(self, path: Path) -> None:
        """Writes them as JSON; the file appears whole."""
        fields = dataclasses.asdict(self) | {
            "unknown_words": {n: w.counts for n, w in self.unknown_words.items()}
        }
        whole_files.write_json(path, fields)

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Reads what `write` wrote.

        Raises:
          FileNotFoundError: no such file.
          UserError: not such a file.
        """
        fields = whole_files.read_json(path)
        try:
            words = {name: UnknownWords(name) for name in fields["unknown_words"]}
            for name, counts in fields["unknown_words"].items():
                words[name].add_counts(counts)
            return cls(
                **fields
                | {
                    "broken": [Broken(**each) for each in fields["broken"]],
                    "cut": {name: Cut(**cut) for name, cut in fields["cut"].items()},
                    "unknown_words": words,
                    "credits": [Credit(**each) for each in fields["credits"]],
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} must hold what a shard is, got something else ({error!r}); "
                "remove it, and run the same command again."
            ) from error


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
            f"--config.max_broken={least:g}. What is done is kept."
        )
