# SPDX-License-Identifier: Apache-2.0
"""The timesteps at which validation reports the loss: t = k / NUM_LEVELS.

Part of the validation protocol, and of the names of its metrics (loss_t0 .. loss_t7).
Imports nothing, so a table of losses is read without loading JAX.
"""

NUM_LEVELS = 8
