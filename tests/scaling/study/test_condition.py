# SPDX-License-Identifier: Apache-2.0
"""Conditions choose rows as Python would, and can do nothing else."""

import numpy as np
import pandas as pd
import pytest

from rfjax.errors import UserError
from rfjax.scaling.study.condition import rows_that_meet

TABLE = pd.DataFrame(
    {
        "depth": [1, 2, 3, 4],
        "samples": [1e6, 2e6, np.nan, 4e6],
        "data": ["emoji", "clips", "emoji", None],
        "cooldown_end": [True, False, True, True],
        "val_ema/loss": [0.9, 0.8, 0.7, 0.6],
        "mixed": [1, "7B", 3, 4],
        "empty": [np.nan] * 4,
        "of": [4, 3, 2, 1],
    },
    index=[10, 11, 12, 13],
)


def meets(condition):
    return rows_that_meet(condition, TABLE).tolist()


@pytest.mark.parametrize(
    ("condition", "depths"),
    [
        ("depth >= 2", [2, 3, 4]),
        ("2 <= depth < 4", [2, 3]),
        ("depth == 2 or depth == 4", [2, 4]),
        ("not depth == 2", [1, 3, 4]),
        ("depth in [1, 4, 9]", [1, 4]),
        ("depth not in (1, 4)", [2, 3]),
        ("depth in []", []),
        ("not (depth > 1 and cooldown_end)", [1, 2]),
        ("cooldown_end", [1, 3, 4]),
        ("cooldown_end == False", [2]),
        ('data == "emoji"', [1, 3]),
        ("data != 'emoji'", [2]),
        ("data not in ['emoji']", [2]),
        ('data < "d"', [2]),
        ("samples > 1.5e6", [2, 4]),
        ("not samples > 1.5e6", [1, 3]),
        ("`val_ema/loss` < 0.75", [3, 4]),
        ("`depth` * 2 + 1 > of ** 2", [3, 4]),
        ("-depth < -3 or depth / 2 == 0.5", [1, 4]),
        ("samples / depth == 1e6", [1, 2, 4]),
        ("1 / (depth - 1) > 0.4", [1, 2, 3]),
        ("mixed == '7B'", [2]),
        ("empty > 1 or empty == 'a'", []),
        ("'`depth`' == data", []),
        ("depth > 9 ** 9 ** 9 ** 9", []),
        ("  depth >= 4  ", [4]),
    ],
)
def test_conditions_choose_rows(condition, depths):
    assert TABLE["depth"][meets(condition)].tolist() == depths


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("@table.to_csv('stolen.csv') or depth > 1", "invalid syntax"),
        ("__import__('os').system('touch stolen.csv')", "not part of a condition"),
        ("depth.__class__ == 1", "depth.__class__ is not part of a condition"),
        ("depth[0] > 1", r"depth\[0\] is not part"),
        ("[d for d in depth]", "is not part of a condition"),
        ("(lambda: depth)() > 1", "is not part of a condition"),
        ("(n := depth) > 1", "is not part of a condition"),
        ("f'{depth}' == '1'", "is not part of a condition"),
        ("depth if depth > 1 else 2", "is not part of a condition"),
        ("depth > 1 & samples > 2", "joined by and, or, not, not by &"),
        ("~cooldown_end", "joined by and, or, not, not by &"),
        ("depth = 1", "invalid syntax"),
        ("depth >=", "invalid syntax"),
        ("depth >= 2; import os", "invalid syntax"),
        ("", "invalid syntax"),
        ("(" * 900 + "depth > 1" + ")" * 90, "too many nested parentheses|parsed"),
        ("-" * 990 + "depth > 1", "recursion|parsed|nested"),
        ("depth > 1 " + "or depth > 1 " * 99, "more than 1000 characters"),
        ("depth > 1e999j", "is not part"),
        ("True", "it names no column"),
        ("1 == 1", "it names no column"),
        ("dephts > 1", "there is no column 'dephts'; the columns are depth, samples"),
        ("`val/loss` > 1", "there is no column 'val/loss'"),
        ("depth", "depth must be true or false, it is a number"),
        ("depth + 1", r"depth \+ 1 must be true or false, it is a number"),
        ("data + 1 > 2", "data must be a number, it is a text"),
        ("cooldown_end + 1 > 2", "cooldown_end must be a number, it is true or false"),
        ("depth == '2'", "depth is a number, '2' a text"),
        ("depth != '2'", "depth is a number, '2' a text"),
        ("mixed > 1", "mixed is a text, 1 a number"),
        ("depth in samples", r"samples must be a list such as \[1, 2\]"),
        ("depth is 1", "compared by == and !="),
        ("depth == None", "None is not part of a condition"),
    ],
)
def test_anything_else_is_refused_in_one_line(
    condition, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        meets(condition)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
