# SPDX-License-Identifier: Apache-2.0
"""Config files: what `--config=FILE[:ARG]` and `--config.SECTION.FIELD=VALUE` give.

A config file defines `get_config(arg)`, which returns an ml_collections ConfigDict, or
is the JSON file of a run. There are three kinds, distinguished by the names of their
fields: a run's, a sweep's and a data set's.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import schema, stopping, whole_files
from rfjax.config import Config
from rfjax.data.encode import EncodeConfig
from rfjax.errors import MissingFileError, UserError
from rfjax.scaling.study.budget import ForecastConfig
from rfjax.scaling.study.grid import GridConfig
from rfjax.scaling.study.launchers import LAUNCHERS, Launcher


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
    path, _, arg = path_and_arg.partition(":")
    if not Path(path).is_file():
        raise MissingFileError(
            f"--config={path} does not exist; name a file such as configs/emoji.py."
        )
    if path.endswith(".json"):
        return whole_files.read_json(path)
    if not path.endswith(".py"):
        raise UserError(
            f"--config={path} must be a Python file with get_config(arg), or a run's "
            "config.json."
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    with _as_the_files_own(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={path} must define get_config(arg), and does not; see configs/."
        )
    with _as_the_files_own(path_and_arg):
        fields = module.get_config(arg)
    fields = fields.to_dict() if hasattr(fields, "to_dict") else fields
    if not isinstance(fields, dict):
        raise UserError(
            f"--config={path}: get_config must return a ConfigDict, got "
            f"{type(fields).__name__}."
        )
    return fields


@contextlib.contextmanager
def _as_the_files_own(path: str) -> Iterator[None]:
    """Errors in a user's config file are the user's: one line, and where it was."""
    try:
        yield
    except ValueError as error:  # the file's own check of its argument
        raise UserError(f"--config={path} is refused: {error}") from error
    except Exception as error:
        stopping.raise_again()
        frames = traceback.extract_tb(error.__traceback__)
        line = getattr(error, "lineno", None) or frames[-1].lineno
        raise UserError(
            f"--config={path} cannot be read: {type(error).__name__}: {error} (line "
            f"{line}); correct the file."
        ) from error


def apply_overrides(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets fields from --config.SECTION.FIELD=VALUE; types are checked later."""
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{override} must have the form --config.FIELD=VALUE.")
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
    except (SyntaxError, ValueError):
        return text
