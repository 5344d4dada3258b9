# SPDX-License-Identifier: Apache-2.0
"""One numbering of several parts."""

import pytest

from rfjax.data.numbering import Numbering


@pytest.mark.parametrize("lengths", [(), (0,), (3,), (2, 0, 0, 3), (0, 1, 0)])
def test_every_number_has_its_place_in_order(lengths):
    numbering = Numbering(lengths)
    listed = [(part, i) for part, length in enumerate(lengths) for i in range(length)]
    assert [numbering.place(i) for i in range(len(numbering))] == listed
    for beyond in (-1, len(listed)):
        with pytest.raises(IndexError):
            numbering.place(beyond)
