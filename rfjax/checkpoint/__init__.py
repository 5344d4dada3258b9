# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: asynchronous, atomic, restored on any mesh and any number of hosts.

A run folder holds `checkpoints/STEP/state` (step, params, ema_params, opt_state),
`checkpoints/STEP/data` (position in the data stream) and `checkpoints/STEP/
checksums.json` (every file), written by orbax into a temporary folder that is renamed
when complete. Files are compared with their checksums before they are read. A
checkpoint that cannot be read is an error that names step and file, never "no
checkpoint".

steps           which checkpoints a run folder holds
pins            reading one while the run goes on and removes old ones
collector       removing old ones, and what killed processes left
literal_path    folders whose names look like patterns
handler         orbax's handler of the state, with checksums
quiet           what libraries print of an error that is raised anyway
lazy_arrays     states that are saved array by array
verify          files against their checksums
restore         parameters alone, in any layout
manager         saving and resuming, as the training loop does
"""

from rfjax.checkpoint.lazy_arrays import LazyArray
from rfjax.checkpoint.manager import CheckpointConfig, Checkpoints
from rfjax.checkpoint.pins import pinned, pinned_for_all
from rfjax.checkpoint.restore import (
    WEIGHTS,
    StoredParams,
    open_params,
    restore_params,
)
from rfjax.checkpoint.steps import (
    FOLDER,
    CheckpointError,
    CheckpointRemoved,
    check_folder,
    choose_step,
    damaged,
    finished_steps,
    inherit,
    newest_step,
)
from rfjax.checkpoint.verify import check_step, find_damage

__all__ = [
    "FOLDER",
    "WEIGHTS",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointRemoved",
    "Checkpoints",
    "LazyArray",
    "StoredParams",
    "check_folder",
    "check_step",
    "choose_step",
    "damaged",
    "find_damage",
    "finished_steps",
    "inherit",
    "newest_step",
    "open_params",
    "pinned",
    "pinned_for_all",
    "restore_params",
]
