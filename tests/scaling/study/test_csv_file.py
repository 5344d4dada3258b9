# SPDX-License-Identifier: Apache-2.0
"""Every value stays in the column that it was written in, or the file is refused."""

import pandas as pd
import pytest

from rfjax.errors import UserError
from rfjax.scaling.study import runs

HEADER = "params,samples,loss"
ROWS = ["1e8,1e9,3.5", "2e8,1e9,3.25", "4e8,1e9,3.125"]
EXPECTED = {
    "params": [1e8, 2e8, 4e8],
    "samples": [1e9] * 3,
    "loss": [3.5, 3.25, 3.125],
}


def read(folder, content):
    path = folder / "points.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return runs.load_table(path)


def lines(*rows, end="\n"):
    return end.join(rows) + end


@pytest.mark.parametrize(
    "content",
    [
        lines(HEADER, *ROWS),
        lines(HEADER, *ROWS).strip(),
        lines(HEADER, *ROWS, end="\r\n"),
        "\ufeff" + lines(HEADER, *ROWS),
        lines(HEADER, *ROWS).replace(",", ";"),
        lines(HEADER, *ROWS).replace(",", "\t"),
        lines(HEADER, *ROWS).replace(",", " ,  "),
        lines("", HEADER, "", *ROWS, ",,", ""),
        lines('"params","samples","loss"', *ROWS),
        lines(f"{HEADER},", *(f"{row}," for row in ROWS)),
        lines(f",{HEADER}", *(f"{number},{row}" for number, row in enumerate(ROWS))),
    ],
    ids=["plain", "no end", "windows", "mark", "semicolons", "tabs", "spaces",
         "blank lines", "quotes", "empty column", "index of pandas"],
)  # fmt: skip
def test_the_ways_to_write_one_table_read_alike(tmp_path, content):
    table = read(tmp_path, content)
    assert {name: table[name].tolist() for name in EXPECTED} == EXPECTED
    assert set(table) == {*EXPECTED, "cooldown_end", "reason"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Of these rows pandas makes N = 128.
        (
            lines("C,N,D,loss", "6e+13,1000000,128,10000000,1.79"),
            r"4 fields in every row, .*\(C, N, D, loss\), got 5 in line 2 \(6e\+13",
        ),
        (lines(HEADER, *(f"{r},7" for r in ROWS)), "got 4 in line 2 .* 3 such rows"),
        (lines(HEADER, *(f"{r}," for r in ROWS)), "got 4 in line 2"),
        (lines(HEADER, ROWS[0], "", f"{ROWS[1]},7"), "got 4 in line 4"),
        (lines(HEADER, ROWS[0], "2e8,3.25"), r"got 2 in line 3 \(2e8, 3\.25\)"),
        (lines(HEADER, ROWS[0], "1,000,000,1e9,3"), "got 5 in line 3"),
        (lines(HEADER, ROWS[0], "# the end"), "got 1 in line 3"),
        (lines(HEADER.replace(",", ";"), "1e8;1e9;3;5"), "got 4 in line 2"),
        (lines("params,samples,params", *ROWS), "several columns for params"),
        (lines("params, samples ,samples", *ROWS), "several columns for samples"),
        (lines("params,,loss", *ROWS), "no name for column 2"),
        (lines(*ROWS), "must start with a header line, got the numbers 1e8, 1e9"),
        (lines(HEADER), "rows below it, got 1 line with"),
        ("", "rows below it, got 0 lines"),
        (lines(HEADER, '"1e8,1e9,3'), "line 2 that cannot be read"),
        (lines(HEADER, "1e8,\0,3"), "in UTF-8, got other bytes in line 2"),
        (lines(HEADER, *ROWS).encode("utf-16"), "got UTF-16 text"),
        (lines(HEADER + ",ü", "1,2,3,4").encode("latin-1"), "other bytes in line 1"),
        (lines('{"params": 1e8, "loss": 3}'), "got JSON; convert"),
        (b"PAR1\0\0", "got a Parquet file; convert"),
        (b"PK\x03\x04", "got a spreadsheet or a ZIP archive; convert"),
    ],
)
def test_what_may_shift_or_is_no_csv_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as refusal:
        read(tmp_path, content)
    assert "\n" not in str(refusal.value)


def test_the_rates_of_a_csv_have_cooled_down_only_where_it_says_so(tmp_path):
    content = lines(
        f"{HEADER},cooldown_end", f"{ROWS[0]},true", f"{ROWS[1]},FALSE", f"{ROWS[2]},1"
    )
    assert read(tmp_path, content)["cooldown_end"].tolist() == [True, False, True]
    with pytest.raises(UserError, match="True or False in every row .*, got 'no'"):
        read(tmp_path, lines(f"{HEADER},cooldown_end", f"{ROWS[0]},no"))


def test_pandas_would_shift_the_columns(tmp_path):
    """The control: what the strict reader is there for."""
    path = tmp_path / "points.csv"
    path.write_text("C,N,D,loss\n6e+13,1000000,128,10000000,1.79\n")
    assert pd.read_csv(path)["N"].tolist() == [128]
