# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (the table is wider than 88 columns)
"""Every parameter of an MMDiT: the names of its dims, and its role in training."""

from rfjax.models.base import Parameter

STACKS = ("dual_blocks", "blocks")  # equal blocks, stacked along a leading dim

# fmt: off
PARAMETERS = (
    # end of the path                               dims                     role               first weights
    Parameter(r"(patch|context)_embed/kernel",      ("input", "embed"),      "input",           "xavier_input"),
    Parameter(r"pooled_embed/hidden/kernel",        ("input", "embed"),      "input",           "xavier_input"),
    Parameter(r"timestep_embed/hidden/kernel",      ("input", "embed"),      "input"),
    Parameter(r"timestep_embed/out/kernel",         ("embed", "output"),     "hidden",          "fixed_hidden"),
    Parameter(r"pooled_embed/out/kernel",           ("embed", "output"),     "hidden"),
    Parameter(r"(query|key|value)/kernel",          ("embed", "heads"),      "hidden"),
    Parameter(r"(query|key|value)/bias",            ("heads",),              "bias"),
    Parameter(r"(image|text|image_only)/out/kernel", ("heads", "embed"),     "hidden"),
    Parameter(r"mlp_in/kernel",                     ("embed", "mlp"),        "hidden"),
    Parameter(r"mlp_in/bias",                       ("mlp",),                "bias"),
    Parameter(r"mlp_out/kernel",                    ("mlp", "embed"),        "hidden"),
    Parameter(r"modulation/kernel",                 ("embed", "modulation"), "modulation"),
    Parameter(r"modulation/bias",                   ("modulation",),         "modulation_bias"),
    Parameter(r"final/linear/kernel",               ("embed", "output"),     "output"),
    Parameter(r"(query|key)_norm/scale",            ("vector",),             "gain"),
    Parameter(r"bias",                              ("vector",),             "bias"),
)
# fmt: on
