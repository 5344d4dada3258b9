# SPDX-License-Identifier: Apache-2.0
"""The run folder: one run, one config, one writer at a time.

config.json     the resolved config; the only file of a run that is planned and
                not started. Relative paths in it (`data.path`) start at the folder.
run.json        what the run is: sizes, data, seed, code version, status
metrics.jsonl   one JSON object per line, in the order of steps
checkpoints/STEP/, samples/, figures/
positions.npy, checksums.json
                only with imported weights: their position table, if not ours
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import checksums, disk, whole_files
from rfjax.errors import StorageError, UserError

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
POSITION_FILE = "positions.npy"
LOCK_FILE = ".lock"

_NUMBER = (float, int, bool)
_TYPES_IN_WORDS = {
    str: "text",
    int: "a whole number",
    type(None): "null",
}
# Fields of run.json that are read again, and their types.
_RUN_FIELDS = {
    "status": (str,),
    "trunk": (str,),
    "data": (str,),
    "data_hash": (str,),
    "data_path": (str, list, type(None)),
    "validation_protocol": (str,),
    "config_hash": (str,),
    "code_version": (str,),
    "parameterisation": (str,),
    "depth": (int,),
    "params": (int,),
    "params_without_adaln": (int,),
    "train_flops_per_sample": (int, float),
    "image_tokens": (int,),
    "context_tokens": (int,),
    "cooldown_steps": (int,),
    "seed": (int,),
    "step": (int,),
    "saved_step": (int, type(None)),
    "learning_rate": (float, int),
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """A short name of a resolved config: 12 hexadecimal digits."""
    return checksums.digest(json.dumps(config, sort_keys=True))


def is_started(workdir: Path, *, checkpoints: Path) -> bool:
    """Whether training has begun in a run folder; its config alone is only a plan.

    Args:
      workdir: run folder.
      checkpoints: the folder for them.
    """
    evidence = (workdir / RUN_FILE, workdir / METRICS_FILE, checkpoints)
    return any(path.exists() for path in evidence)


def claim(
    workdir: Path,
    config: Mapping[str, Any],
    *,
    present: Mapping[str, Any] | None = None,
    may_change: tuple[str, ...] = (),
) -> None:
    """Writes the config of a run that starts or resumes; `check_claim` comes first."""
    check_claim(workdir, config, present=present, may_change=may_change)
    whole_files.write_json(workdir / CONFIG_FILE, config)


def check_claim(
    workdir: Path,
    config: Mapping[str, Any],
    *,
    present: Mapping[str, Any] | None = None,
    may_change: tuple[str, ...] = (),
) -> None:
    """Refuses a folder that holds anything but this run.

    Args:
      workdir: run folder; may be missing.
      config: the resolved config.
      present: the resolved config that is there, if one is; fields that it lacks
        hold their defaults.
      may_change: beginnings of the names of fields that may differ, as
        `schema.changeable_fields` gives them.

    Raises:
      UserError: the config there is another, or there are files and no config.
    """
    if present is not None:
        if _only_prolongs(present, config):
            may_change += ("train.num_steps",)
        changed = differences(present, config, may_change=may_change)
        if changed:
            raise UserError(
                f"run folder {workdir} belongs to another config ({'; '.join(changed)})"
                "; use another --workdir, or the config that the folder holds."
            )
    elif workdir.exists() and not (workdir.is_dir() and _is_unclaimed(workdir)):
        raise UserError(
            f"run folder {workdir} is not empty and holds no {CONFIG_FILE}, so it is "
            "not a run of rfjax; use another --workdir."
        )


def _is_unclaimed(workdir: Path) -> bool:
    """Whether a folder holds at most what a start leaves that was killed at once."""
    return not {*whole_files.foreign(workdir)} - {LOCK_FILE}


def check_not_lost(
    workdir: Path, *, saved_steps: Sequence[int], checkpoints: Path
) -> None:
    """Refuses to restart from scratch a run that has already trained.

    Args:
      workdir: run folder.
      saved_steps: steps of the checkpoints that are there.
      checkpoints: the folder for them, made before the first step.

    Raises:
      UserError: if run.json or the metrics show that it has trained, and no checkpoint
        is there. A run that was killed before its first save has lost nothing: its
        folder of checkpoints is there, and run.json says that nothing was ever saved.
        Also if either file cannot be read.
    """
    run = read_run(workdir)
    steps = [line["step"] for line in read_metrics(workdir)]
    if saved_steps:
        return
    never_saved = (
        "saved_step" in run and run["saved_step"] is None and checkpoints.is_dir()
    )
    trained = max([*steps, run.get("step") or 0])
    if never_saved or (trained == 0 and run.get("saved_step") is None):
        return
    raise UserError(
        f"run folder {workdir} has trained to step "
        f"{max(trained, run.get('saved_step') or 0)}"
        " and holds no checkpoint; bring back its folder checkpoints (is a disk not "
        "mounted?), or start over in another --workdir."
    )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, may_change: tuple[str, ...]
) -> list[str]:
    """Fields that differ between two resolved configs, in words.

    Args:
      old: the config that is there.
      new: the config that is asked for.
      may_change: beginnings of the names of fields that do not matter.
    """
    old, new = flatten(old), flatten(new)
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not name.startswith(may_change)
    ]


def _only_prolongs(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a constant-rate run is given further steps; no finished step differs."""
    return (
        old["optimizer"]["cooldown_steps"] == new["optimizer"]["cooldown_steps"] == 0
        and new["train"]["num_steps"] > old["train"]["num_steps"]
    )


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Holds the folder for one writing process; the system frees it if that dies.

    Raises:
      UserError: if another process is training there, or the lock is no file.
    """
    disk.make_folder(workdir)
    if (workdir / LOCK_FILE).is_dir():
        raise UserError(
            f"{workdir / LOCK_FILE} must be a file, got a folder; move it away, or use "
            "another --workdir."
        )
    with (workdir / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"run folder {workdir} is in use by another training process; wait for "
                "it to end, or use another --workdir."
            ) from None
        yield


def update_run(workdir: Path, **fields: Any) -> None:
    """Sets fields of run.json and keeps the others.

    Raises:
      StorageError: the disk has no room for it, not even in place of the old one.
    """
    path, run = workdir / RUN_FILE, read_run(workdir) | fields
    try:
        whole_files.write_json(path, run)
    except StorageError:
        # On a full disk there is still the room of the old file, whose status would
        # otherwise stay "running".
        if not whole_files.overwrite_json(path, run):
            raise


def read_run(workdir: Path, *, required: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of run.json; none if there is no such file.

    Args:
      workdir: run folder.
      required: names of fields that a file must have.

    Raises:
      UserError: the file holds no JSON object, lacks a field, or has one of another
        type.
    """
    path = Path(workdir) / RUN_FILE
    if not path.exists():
        return {}
    run = whole_files.read_json(path)
    for name in required:
        if name not in run:
            raise UserError(
                f"{path} must have the field {name}, as a run of this version writes "
                f"it, and has {', '.join(run) or 'none'}; restore it from a copy, or "
                "read it with the version of rfjax that wrote it."
            )
    for name, types in _RUN_FIELDS.items():
        if name in run and type(run[name]) not in types:
            raise UserError(
                f"field {name} of {path} must be {_in_words(types)}, got "
                f"{run[name]!r}; restore the file from a copy."
            )
    return run


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line is left out.

    Raises:
      UserError: a line is no JSON object with a step and metrics that are numbers.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    lines = []
    # Only a line that was ended is whole; what follows the last end was cut off.
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        if not text:
            continue
        try:
            line = whole_files.parse_json(text, what=f"{path} line {number}")
        except UserError as error:
            raise UserError(f"{str(error).split('; ')[0]}; delete that line.") from None
        # Metrics have a slash in their names; what else there is was added by hand.
        for name in ("step", *(n for n in line if n == "samples" or "/" in n)):
            types = (int,) if name in ("step", "samples") else _NUMBER
            if type(line.get(name)) not in types:
                raise UserError(
                    f"{path} line {number} must have {_in_words(types)} as its {name}, "
                    f"got {line.get(name)!r}; repair or delete that line."
                )
        lines.append(line)
    return lines


def _in_words(types: Sequence[type]) -> str:
    """The types that a value may have."""
    if float in types:
        return "a number"
    return " or ".join(_TYPES_IN_WORDS[each] for each in types)


def inherit_metrics(workdir: Path, *, source: Path, last_step: int) -> None:
    """Gives a run the lines of the run that it is branched from."""
    lines = (line for line in read_metrics(source) if line["step"] <= last_step)
    whole_files.write_text(workdir / METRICS_FILE, _as_text(lines))


def trim_metrics(workdir: Path, *, last_step: int) -> None:
    """Drops lines of steps that a resumed run is about to repeat."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        return
    text = _as_text(line for line in read_metrics(workdir) if line["step"] <= last_step)
    if path.read_bytes() != text.encode():
        whole_files.write_text(path, text)


def _as_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines of metrics.jsonl."""
    return "".join(json.dumps(line) + "\n" for line in lines)
