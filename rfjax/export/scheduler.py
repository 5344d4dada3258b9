# SPDX-License-Identifier: Apache-2.0
"""diffusers' scheduler_config.json and the `sample` section of a run, both ways.

What the section has no field for is kept in run.json by an import, and an export
writes it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.errors import UserError
from rfjax.export.card import Run
from rfjax.flow.timesteps import DynamicShift

FILE = "scheduler_config.json"
EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DYNAMIC = tuple(field.name for field in dataclasses.fields(DynamicShift))
# Field -> the value with which it changes nothing.
NOT_FOLLOWED = {
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


def read(folder: Path) -> dict[str, Any]:
    """The content of scheduler_config.json in a folder, {} if there is none.

    Raises:
      UserError: it is not that of a scheduler for a rectified flow.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    content = whole_files.read_json(path)
    name = content.get("_class_name", EULER)
    if not (str(name).startswith("FlowMatch") or content.get("use_flow_sigmas")):
        raise UserError(
            f"{path} must be of a scheduler for a rectified flow, as {EULER}, got "
            f"{name!r}; choose the weights of a model that predicts noise - latents."
        )
    if content.get("num_train_timesteps", 1000) != 1000:
        raise UserError(
            f"{path} must have num_train_timesteps = 1000, got "
            f"{content['num_train_timesteps']!r}; the network of rfjax is given 1000 t."
        )
    return content


def sample_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler_config.json says, as fields of the `sample` section."""
    fields = {}
    if content.get("_class_name") == HEUN:
        fields["solver"] = "heun"
    if content.get("use_dynamic_shifting"):
        if content.get("time_shift_type", "exponential") == "exponential":
            fields["dynamic_shift"] = dataclasses.asdict(DynamicShift()) | {
                name: content[name] for name in DYNAMIC if name in content
            }
    elif content.get("use_flow_sigmas") and "flow_shift" in content:
        fields["shift"] = content["flow_shift"]
    elif "shift" in content:
        fields["shift"] = content["shift"]
    return fields


def not_followed(content: Mapping[str, Any]) -> list[str]:
    """What of a scheduler_config.json the `sample` section cannot say."""
    found = [
        f"{name} = {content[name]!r}"
        for name, idle in NOT_FOLLOWED.items()
        if content.get(name, idle) != idle
    ]
    if content.get("_class_name", EULER) not in (EULER, HEUN):
        found.append(f"_class_name = {content['_class_name']!r}")
    if content.get("use_dynamic_shifting") and "dynamic_shift" not in sample_fields(
        content
    ):
        found.append(f"time_shift_type = {content['time_shift_type']!r}")
    return found


def content_for(run: Run) -> dict[str, Any]:
    """The scheduler_config.json of a run: the imported one while the run follows it."""
    imported = run.imported_configs.get("scheduler")
    if imported is not None and _holds(imported, run):
        return dict(imported)
    content = {
        "_class_name": run.scheduler,
        "num_train_timesteps": 1000,
        "shift": run.shift,
    }
    if run.dynamic_shift is not None:
        content |= {"use_dynamic_shifting": True, **run.dynamic_shift}
    return content


def _holds(content: Mapping[str, Any], run: Run) -> bool:
    """Whether the run still samples as a scheduler_config.json says."""
    sample = run.config["sample"]
    name = content.get("_class_name", EULER)
    return (name == run.scheduler or name not in (EULER, HEUN)) and all(
        sample.get(field) == value for field, value in sample_fields(content).items()
    )
