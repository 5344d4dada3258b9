# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: what came in, what went and why, and what stays."""

from __future__ import annotations

import base64
import collections
import html
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from rfjax import schema
from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.pictures import BROKEN
from rfjax.data.filters.selection import Removed, Selection
from rfjax.data.filters.words import words_of
from rfjax.data.sources.base import Source
from rfjax.data.sources.pictures import BrokenPicture

_EXAMPLES = 12  # of each reason
_NAMES = 1000  # in a list, at most
_ROWS = 30  # of a table
_SIDE = 128  # pixels of a picture's longer side

_PLACE_OF_NOTES = "<!-- what encoding has found -->"

_CSS = """
body { font: 16px/1.5 Georgia, serif; max-width: 60rem; margin: 3rem auto;
  padding: 0 1rem; color: #1b1b1b; background: #fff; }
h1 { font-size: 1.7rem; font-weight: normal; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.6rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.8rem 0 0.4rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
td, th { padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; vertical-align: top; }
th { font-weight: normal; color: #666; }
td.number, th.number { text-align: right; white-space: nowrap; width: 1%; }
td.bar { width: 50%; vertical-align: middle; }
.bar div { height: 0.8rem; background: #0072b2; min-width: 1px; }
.grid { display: flex; flex-wrap: wrap; gap: 0.8rem; }
figure { margin: 0; width: 9rem; font-size: 0.8rem; line-height: 1.3;
  overflow-wrap: anywhere; }
figure.pair { width: 18.4rem; }
.pictures { display: flex; gap: 0.4rem; align-items: flex-end; height: 8.2rem; }
.pictures span { display: flex; flex-direction: column; width: 9rem; color: #666; }
img { max-width: 8rem; max-height: 7rem; align-self: flex-start;
  border: 1px solid #ddd; }
.none { width: 7rem; height: 7rem; border: 1px dashed #bbb; color: #888;
  display: flex; align-items: center; justify-content: center; }
.detail { color: #b04a00; }
.key { color: #888; }
"""


def report_page(
    source: Source,
    config: FilterConfig,
    selection: Selection,
    *,
    name: str,
    splits: Mapping[str, int] | None = None,
    buckets: Mapping[str, int] | None = None,
) -> str:
    """The page; it needs nothing but itself, and is the same for the same arguments.

    Args:
      source: the pictures; a few that went are read again.
      config: the rules.
      selection: what they decided.
      name: of the data set.
      splits: split -> records in it.
      buckets: "height x width" of latents -> records in it.
    """
    sections = [
        *_summary(selection, name),
        *_rules(config),
        *(
            section
            for reason in selection.counts
            for section in _reason(source, selection, reason)
        ),
        "<h2>What stays</h2>",
        _PLACE_OF_NOTES,
        *_counts("Splits", splits or {}),
        *_counts("Buckets: height and width of latents", buckets or {}),
        *_describe_kept(source, selection),
    ]
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(name)}: records</title><style>{_CSS}</style>\n"
        "<body>" + "\n".join(sections) + "</body></html>\n"
    )


def with_notes(
    page: str, sentences: Sequence[str], broken: Sequence[tuple[str, str]] = ()
) -> str:
    """A page with what encoding has found.

    Args:
      page: of `report_page`.
      sentences: such as those about captions that were cut, and unknown words.
      broken: name and problem of each record that could not be encoded after all.
    """
    notes = [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]
    if broken:
        notes.append(_names("left out while encoding", broken))
    return page.replace(_PLACE_OF_NOTES, "\n".join(notes))


def _summary(selection: Selection, name: str) -> Iterator[str]:
    """How many came, went for each reason, and stay, as a funnel."""
    total, left = selection.num_records, selection.num_records
    yield f"<h1>{html.escape(name)}</h1>"
    yield f"<p>{len(selection.kept):,} of {total:,} records stay.</p>"
    rows = [_funnel_row("in the source", total, left, total)]
    for reason, count in selection.counts.items():
        left -= count
        link = f"<a href='#{_anchor(reason)}'>{html.escape(reason)}</a>"
        rows.append(_funnel_row(link, -count, left, total))
    yield (
        "<table><tr><th>reason<th class=number>records<th class=number>left"
        f"<th>{''.join(rows)}</table>"
    )


def _funnel_row(label: str, change: int, left: int, total: int) -> str:
    sign = "−" if change < 0 else ""
    return (
        f"<tr><td>{label}<td class=number>{sign}{abs(change):,}"
        f"<td class=number>{left:,}{_bar(left / max(total, 1))}"
    )


def _bar(share: float) -> str:
    return f"<td class=bar><div style='width:{100 * share:.2f}%'></div>"


def _rules(config: FilterConfig) -> Iterator[str]:
    """The rules that are set, as the config names them."""
    default = schema.to_dict(FilterConfig())
    rows = [
        f"<tr><td>{name}<td>{html.escape(schema.shown(value))}"
        for name, value in schema.to_dict(config).items()
        if value != default[name]
    ]
    yield "<h2>Rules</h2>"
    yield f"<table>{''.join(rows)}</table>" if rows else "<p>No filter is set.</p>"


def _reason(source: Source, selection: Selection, reason: str) -> Iterator[str]:
    """The records that went for a reason: their number, and some of them."""
    removed = [each for each in selection.removed if each.reason == reason]
    yield f"<h2 id='{_anchor(reason)}'>{html.escape(reason)}: {len(removed):,}</h2>"
    if reason != BROKEN:
        figures = (_figure(source, each) for each in _spread(removed, _EXAMPLES))
        yield f"<div class=grid>{''.join(figures)}</div>"
    if all(each.detail == "" or each.duplicate_of is not None for each in removed):
        return
    yield _names("by name", [(each.key, each.detail) for each in removed])


def _names(title: str, records: Sequence[tuple[str, str]]) -> str:
    """A list of records, each with what is wrong, that opens on a click."""
    items = (
        f"<li>{html.escape(problem if key in problem else f'{key}: {problem}')}"
        for key, problem in records[:_NAMES]
    )
    more = f"; the first {_NAMES:,}" if len(records) > _NAMES else ""
    return (
        f"<details><summary>{title}{more}</summary><ul>{''.join(items)}</ul></details>"
    )


def _figure(source: Source, removed: Removed) -> str:
    """A record that went, with the one that stays in its place if there is one."""
    pictures = _picture(source, removed.index)
    pair = ""
    if removed.duplicate_of is not None:
        kept = _picture(source, removed.duplicate_of)
        pictures = f"<span>stays{kept}</span><span>goes{pictures}</span>"
        pair = " class=pair"
    caption = _caption(source, removed.index)
    if removed.duplicate_of is not None:
        caption = f"{_caption(source, removed.duplicate_of)}<br>goes: {caption}"
        caption = f"stays: {caption}"
    lines = [caption, f"<span class=key>{html.escape(removed.key)}</span>"]
    if removed.detail:
        detail = html.escape(_shorten(removed.detail))
        lines.insert(1, f"<span class=detail>{detail}</span>")
    return (
        f"<figure{pair}><div class=pictures>{pictures}</div>"
        f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
    )


def _caption(source: Source, index: int) -> str:
    captions = filter(None, source.entry(index).captions)
    return html.escape(_shorten(" / ".join(captions))) or "no caption"


def _picture(source: Source, index: int) -> str:
    """A small picture as an <img>; a box if there is none, or it cannot be read."""
    if not hasattr(source, "picture"):
        return "<div class=none>no picture</div>"
    try:
        image = Image.fromarray(np.ascontiguousarray(source.picture(index)))
    except BrokenPicture:
        return "<div class=none>broken</div>"
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' src='data:image/jpeg;base64,{data}'>"


def _describe_kept(source: Source, selection: Selection) -> list[str]:
    """Tables of licences and of the lengths of captions."""
    licences: collections.Counter[str] = collections.Counter()
    lengths: dict[str, list[int]] = {kind: [] for kind in source.caption_kinds}
    for index in selection.kept:
        entry = source.entry(int(index))
        licences[entry.licence or "none given"] += 1
        for kind, caption in zip(lengths, entry.captions, strict=True):
            lengths[kind].append(len(words_of(caption)))
    by_count = dict(sorted(licences.items(), key=lambda each: (-each[1], each[0])))
    tables = list(_counts("Licences", by_count))
    for kind, words in lengths.items():
        kind = f" ({kind})" if len(lengths) > 1 else ""
        median = f"median {statistics.median(words):g}, " if words else ""
        title = f"Words of a caption{kind}: {median}most {max(words, default=0)}"
        tables += _counts(title, _histogram(words))
    return tables


def _histogram(lengths: Iterable[int]) -> dict[str, int]:
    """Lengths in classes that double: 0, 1, 2, 3 to 4, 5 to 8 and so on."""
    classes = collections.Counter(
        (length - 1).bit_length() + 1 if length else 0 for length in lengths
    )
    names = {0: "0", 1: "1", 2: "2"}
    return {
        names.get(k, f"{2 ** (k - 2) + 1} to {2 ** (k - 1)}"): classes[k]
        for k in range(max(classes, default=-1) + 1)
    }


def _counts(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    """A table of counts with bars."""
    if not counts:
        return
    most = max(counts.values())
    rows = [
        f"<tr><td>{html.escape(_shorten(name))}<td class=number>{count:,}"
        f"{_bar(count / most)}"
        for name, count in list(counts.items())[:_ROWS]
    ]
    yield f"<h3>{html.escape(title)}</h3><table>{''.join(rows)}</table>"
    if len(counts) > _ROWS:
        rest = sum(list(counts.values())[_ROWS:])
        yield f"<p>And {len(counts) - _ROWS:,} more, of {rest:,} records.</p>"


def _spread(records: Sequence[Removed], most: int) -> list[Removed]:
    """Some of the records, evenly spread over all."""
    number = min(len(records), most)
    return [records[i * len(records) // number] for i in range(number)]


def _anchor(reason: str) -> str:
    return "-".join(words_of(reason)) or "reason"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:117]}..."
