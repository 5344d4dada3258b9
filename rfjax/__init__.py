# SPDX-License-Identifier: Apache-2.0
"""rfjax: rectified-flow transformers in JAX, with a scaling study built in.

What a notebook starts with is here, and imported when it is first used:

    from rfjax import load_runs, load_table, fit_law, analyse
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # name -> where it is defined
    "analyse": "rfjax.scaling.report",
    "fit_law": "rfjax.scaling.laws",
    "load_runs": "rfjax.scaling.study",
    "load_table": "rfjax.scaling.study",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`; `import rfjax` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module rfjax has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
