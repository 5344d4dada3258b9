# SPDX-License-Identifier: Apache-2.0
"""The pages of this folder as HTML: `make docs`. Every warning is an error."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import rfjax  # noqa: E402  (it must be found first)

project = "rfjax"
author = "The rfjax authors"
copyright = "The rfjax authors, Apache-2.0"
version = release = rfjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstring_text",
    "reference_pages",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "rfjax"
html_copy_source = False
pygments_style = "default"
smartquotes = False  # `--flag` keeps its hyphens

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

nitpicky = True
# Objects of other projects: their inventories would have to be fetched, and CI has no
# network. Only names that begin with another package's are let through.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(jax|jaxlib|flax|optax|orbax|ocp|numpy|np|jnp|pd|pandas|matplotlib|Figure|tqdm|"
        r"torch|cyclopts|grain|tensorflow_datasets|PIL|collections|pathlib|types|typing|contextlib|enum|abc|os|re|"
        r"fractions|itertools)"
        r"(\..*)?",
    ),
    ("py:class", "Records"),  # a name for a type, no class
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_preserve_defaults = True  # rf/lognorm(0.00,1.00), as it is written
