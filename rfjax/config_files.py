# SPDX-License-Identifier: Apache-2.0
"""Config files: what `--config=FILE[:ARG]` and `--config.SECTION.FIELD=VALUE` give.

A config file defines `get_config()`, or `get_config(arg)` if it takes an argument. It
returns an ml_collections ConfigDict or a dict. The JSON file of a run is a config file
too. There are three kinds, distinguished by the names of their fields: a run's, a
sweep's and a data set's.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfjax import input_paths, schema, stopping, whole_files
from rfjax.config import Config
from rfjax.data.encode import EncodeConfig
from rfjax.errors import MissingFileError, UserError
from rfjax.scaling.study.budget import ForecastConfig
from rfjax.scaling.study.grid import GridConfig
from rfjax.scaling.study.launchers import LAUNCHERS, Launcher
from rfjax.value_types import Local


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The sections of a sweep's config.

    Attributes:
      base: fields of a run's config that all cells share.
      grid: what differs between the cells.
      forecast: what is known before the sweep.
      launcher: who trains the cells; --launcher=KIND picks another kind.
    """

    base: Config
    grid: GridConfig
    forecast: ForecastConfig = ForecastConfig()
    launcher: Launcher = schema.one_of(LAUNCHERS, default="local")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of config file.

    Attributes:
      name: whose config it is.
      command: the command that takes it.
      fields: dataclass with the names, types and defaults of its fields.
    """

    name: str
    command: str
    fields: type


RUN = Kind("a run", "rfjax train", Config)
SWEEP = Kind("a sweep", "rfjax sweep", SweepConfig)
DATA_SET = Kind("a data set", "rfjax encode", EncodeConfig)
KINDS = (RUN, SWEEP, DATA_SET)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads what `--config` names into what a command takes; part of the flag's type.

    Attributes:
      kind: what the file has to be; None takes any.
      build: makes of the file's fields what the command takes.
    """

    kind: Kind | None
    build: Callable[[dict[str, Any]], Any] = dict

    def __call__(self, path_and_arg: str, overrides: Sequence[str] = ()) -> Any:
        """Reads a config file.

        Args:
          path_and_arg: FILE or FILE:ARG.
          overrides: each as --config.SECTION.FIELD=VALUE.

        Raises:
          MissingFileError: there is no such file.
          UserError: it cannot be read, or is of another kind.
        """
        fields = load_config_file(path_and_arg)
        found = kind_of(fields)
        if self.kind is not None and found not in (self.kind, None):
            raise UserError(
                f"--config={path_and_arg} must be the config of {self.kind.name}, and "
                f"is that of {found.name}; `{found.command}` takes it."
            )
        return self.build(apply_overrides(fields, overrides))


def kind_of(fields: Mapping[str, Any]) -> Kind | None:
    """The kind that shares most field names with a config; None if all share none."""

    def num_shared(kind: Kind) -> int:
        """How many field names a kind has in common with the config."""
        return len({f.name for f in dataclasses.fields(kind.fields)} & set(fields))

    nearest = max(KINDS, key=num_shared)
    return nearest if num_shared(nearest) else None


def load_config_file(path_and_arg: str) -> dict[str, Any]:
    """Runs get_config(ARG) of FILE[:ARG], or reads FILE.json, and returns the fields.

    Raises:
      MissingFileError: there is no such file.
      UserError: it defines no get_config, rejects ARG, or is not valid JSON.
    """
    path_and_arg = str(Local().check(path_and_arg, name="--config"))
    path, colon, arg = path_and_arg, "", ""
    if not Path(path).is_file():  # else its own name has the colon
        path, colon, arg = path_and_arg.partition(":")
    if not Path(path).is_file():
        found = "is a folder" if Path(path).exists() else "does not exist"
        raise MissingFileError(
            f"--config={path} {found}; name a file such as configs/emoji.py, or the "
            "config.json of a run."
        )
    if colon and (not arg or path.endswith(".json")):
        raise UserError(
            f"--config={path_and_arg} must have an argument behind the colon, and "
            f"only a Python file takes one; write --config={path}."
        )
    if path.endswith(".json"):
        fields = whole_files.read_json(path)
        kind = kind_of(fields)
        if kind is None:
            return fields
        return input_paths.from_folder(kind.fields, fields, Path(path).parent)
    if not path.endswith(".py"):
        raise UserError(
            f"--config={path} must be a Python file with get_config(), or a run's "
            "config.json; name another file."
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    with _as_the_files_own(path):
        spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config) or isinstance(get_config, type):
        raise UserError(
            f"--config={path} must define a function get_config(), and does not; see "
            "configs/."
        )
    args = _arguments(get_config, arg, path=path)
    with _as_the_files_own(path, arg):
        return _plain_fields(get_config(*args), path=path)


def _arguments(
    get_config: Callable[..., Any], arg: str, *, path: str
) -> tuple[str, ...]:
    """What get_config is called with: ARG, or what its own default says.

    Raises:
      UserError: an argument is given to a function that takes none.
    """
    parameters = inspect.signature(get_config).parameters.values()
    by_place = [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    if arg and not by_place:
        raise UserError(
            f"--config={path}:{arg} must not have an argument, since get_config of "
            f"{path} takes none; write --config={path}."
        )
    needs_one = by_place and by_place[0].default is inspect.Parameter.empty
    return (arg,) if arg or needs_one else ()


def _plain_fields(fields: Any, *, path: str) -> dict[str, Any]:
    """A ConfigDict, or a dict with ConfigDicts in it, as dicts of plain values."""
    if hasattr(fields, "to_dict") and not isinstance(fields, type):
        fields = fields.to_dict()
    if not isinstance(fields, Mapping):
        raise UserError(
            f"--config={path}: get_config must return a ConfigDict or a dict, got "
            f"{schema.shown(fields)} ({type(fields).__name__}); return one."
        )
    return _plain(fields, path=path)


def _plain(value: Any, *, path: str) -> Any:
    """A value that a config file returned, with copies of what could be changed."""
    if hasattr(value, "to_dict") and not isinstance(value, type):
        value = value.to_dict()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(
                    f"--config={path}: names of fields must be texts, got "
                    f"{schema.shown(key)}; put it in quotes."
                )
        return {key: _plain(entry, path=path) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, path=path) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _as_the_files_own(path: str, arg: str = "") -> Iterator[None]:
    """Errors in a user's config file are the user's: one line, and where it was."""
    name = f"{path}:{arg}" if arg else path
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # the file's own check of its argument
        raise UserError(f"--config={name} is refused: {_in_one_line(error)}") from error
    except (Exception, SystemExit) as error:
        stopping.raise_again()
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == Path(path).absolute()
        ]
        where = f" (line {lines[-1]})" if lines else ""  # a SyntaxError says it itself
        raise UserError(
            f"--config={name} cannot be read: {type(error).__name__}: "
            f"{_in_one_line(error)}{where}; correct the file."
        ) from error


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def apply_overrides(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets fields from --config.SECTION.FIELD=VALUE; types are checked later."""
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not equals or not all(name.split(".")):
            raise UserError(
                f"{override} must have the form --config.FIELD=VALUE; write it so."
            )
        *sections, field = name.split(".")
        target = config
        for section in sections:
            if target.get(section) is None:  # also a section that is left out by null
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{override}: {section} is a field, not a section.")
        target[field] = parse_value(text)
    return config


def parse_value(text: str) -> Any:
    """A Python literal if it is one (3, 1e-4, True, None, [1, 2]), else the text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
