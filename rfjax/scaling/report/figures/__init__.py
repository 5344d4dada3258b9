# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study, at the width of a paper's column.

gallery     every figure with its caption
losses      the measured losses, along training and against compute
law         the fitted law
checks      how far the law can be trusted
models      the models of a study, distinguished by colour and name
axes        what the figures have in common
"""

from rfjax.scaling.report.figures.gallery import draw_all

__all__ = ["draw_all"]
