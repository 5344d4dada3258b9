# SPDX-License-Identifier: Apache-2.0
"""Filters: which records of a source are encoded, and a report of the others.

config        the rules, as a config names them
selection     the rules in their order, and what they decide
entries       rules about metadata
words         what a word is
pictures      rules about pixels
descriptors   what a picture looks like, in numbers
alignment     how two pictures differ once one is laid on the other
duplicates    which pictures look the same
report        a page about all of it
"""

from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.report import report_page, with_notes
from rfjax.data.filters.selection import Removed, Selection, select

__all__ = [
    "FilterConfig",
    "Removed",
    "Selection",
    "report_page",
    "select",
    "with_notes",
]
