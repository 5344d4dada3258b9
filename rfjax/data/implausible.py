# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch hold values that no encoder makes, once a loss tells so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rfjax.data.shards.contents import LARGEST_LATENT, LARGEST_TEXT_STATE
from rfjax.types import Batch


def describe_bad_rows(batch: Batch, *, name_of: Callable[[int], str]) -> str | None:
    """What is wrong with which examples, in words; None if nothing is.

    Args:
      batch: host-local, of NumPy arrays.
      name_of: `sample_index` of a row -> what the row is, as "record 3 of a.shard".
    """
    found = []
    for name, array, largest in (
        ("latents", batch.latents, LARGEST_LATENT),
        ("context", batch.conditioning.context, LARGEST_TEXT_STATE),
        ("pooled", batch.conditioning.pooled, LARGEST_TEXT_STATE),
    ):
        values = np.abs(np.asarray(array).astype(np.float32))
        values = values.reshape(len(values), -1)
        # Not "greater", which NaN never is.
        for row in np.flatnonzero(~(values <= largest).all(axis=1)):
            worst = values[row].max()
            held = f"{worst:.3g}" if np.isfinite(worst) else "values not finite"
            found.append(
                f"{name} of {name_of(int(batch.sample_index[row]))} hold {held}"
            )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more if found else None
