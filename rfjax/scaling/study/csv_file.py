# SPDX-License-Identifier: Apache-2.0
"""A CSV of other people's runs, read so that no value ends up in another column.

pandas takes a row that is longer than its header for one with an index, and fills a
shorter one with blanks; here every row has as many fields as the header, or the file is
refused with the line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rfjax.errors import UserError

_SEPARATORS = ",;\t"
# What files that are taken for a CSV by mistake start with.
_OTHER_FORMATS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a spreadsheet or a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"{": "JSON",
    b"[": "JSON",
}


def read_csv_file(path: Path) -> pd.DataFrame:
    """The columns of a CSV by their names, numbers as numbers.

    Separators are commas, semicolons or tabs, as in the header. Blank lines are left
    out, and so is a column without a name that is empty or counts the rows from 0.

    Raises:
      UserError: the file is no CSV, has no header or no rows, a row has another number
        of fields than the header, or a column has no name or that of another.
    """
    lines = _split(_decode(path), path=path)
    if len(lines) < 2:
        raise UserError(
            f"table {path} must be a CSV file with a header line and rows below it, "
            f"got {len(lines)} line{'s' * (len(lines) != 1)} with text in all."
        )
    (_, header), *body = lines
    _check_lengths(header, body, path=path)
    rows = [fields for _, fields in body]
    named = _named_columns(header, rows, path=path)
    buffer = io.StringIO()
    csv.writer(buffer).writerows(
        [row[column] for column in named] for row in [header, *rows]
    )
    buffer.seek(0)
    return pd.read_csv(buffer, index_col=False)  # finds the type of each column


def _decode(path: Path) -> str:
    """The text of the file, without the byte order mark that spreadsheets put there."""
    content = path.read_bytes()
    for beginning, what in _OTHER_FORMATS.items():
        if content.lstrip().startswith(beginning):
            raise UserError(
                f"table {path} must be a CSV file with a header line, got {what}; "
                "convert it."
            )
    text = content.decode("utf-8-sig", errors="replace")
    if foreign := {"\0", "\ufffd"} & set(text):
        first = min(text.index(character) for character in foreign)
        line = 1 + text[:first].count("\n")
        raise UserError(
            f"table {path} must be a CSV file with a header line, in UTF-8, got other "
            f"bytes in line {line}; convert it."
        )
    return text


def _split(text: str, *, path: Path) -> list[tuple[int, list[str]]]:
    """(number of the line, fields) of every row with text, the header first."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=max(_SEPARATORS, key=header.count),
        skipinitialspace=True,
        strict=True,
    )
    try:
        rows = [(reader.line_num, [f.strip() for f in fields]) for fields in reader]
    except csv.Error as error:  # binary, or a quote that nothing closes
        raise UserError(
            f"table {path} must be a CSV file with a header line, got line "
            f"{reader.line_num} that cannot be read ({error}); correct or convert it."
        ) from error
    return [(line, fields) for line, fields in rows if any(fields)]


def _check_lengths(
    header: Sequence[str], body: Sequence[tuple[int, Sequence[str]]], *, path: Path
) -> None:
    """Raises UserError if a row is longer or shorter than the header."""
    wrong = [(line, fields) for line, fields in body if len(fields) != len(header)]
    if wrong:
        line, fields = wrong[0]
        raise UserError(
            f"table {path.name} must have {len(header)} fields in every row, as in its "
            f"header ({', '.join(header)}), got {len(fields)} in line {line} "
            f"({', '.join(fields)})"
            + f", and {len(wrong)} such rows in all" * (len(wrong) > 1)
            + "; name every column in the header, quote fields that hold a separator."
        )


def _named_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, path: Path
) -> list[int]:
    """Positions of the columns to read; raises UserError unless each has its name."""
    if all(_is_number(name) for name in header):
        raise UserError(
            f"table {path.name} must start with a header line, got the numbers "
            f"{', '.join(header)}; name its columns in a first line."
        )
    counted = [str(number) for number in range(len(rows))]
    named = []
    for position, name in enumerate(header):
        if not name:
            values = [row[position] for row in rows]
            if any(values) and values != counted:
                raise UserError(
                    f"table {path.name} must name every column in its header, got no "
                    f"name for column {position + 1} ({', '.join(header)}); name it."
                )
            continue
        if name in (header[other] for other in named):
            raise UserError(
                f"table {path.name} must give every column a name of its own, got "
                f"several columns for {name} ({', '.join(header)}); rename or drop one."
            )
        named.append(position)
    return named


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
