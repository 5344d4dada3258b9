# SPDX-License-Identifier: Apache-2.0
"""The commands: one file and one function each, for the shell and a notebook alike.

    rfjax evaluate --workdir=runs/emoji          in a shell
    commands.evaluate("runs/emoji")              in a notebook

The command line is derived from a function: flags and types from its signature, help
from its docstring, whose `Example:` section ends the help. What it returns is printed;
if that has an `exit_status`, the process ends with it. A new command is a file with a
function here, and an entry in `COMMANDS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Command:
    """What one subcommand calls, and what must be set before JAX is imported.

    Attributes:
      function: "FILE:FUNCTION" in this folder; imported only when it is called, so that
        `rfjax --help` is quick.
      computes: most of its time goes into the model, which large memory pages make
        faster on a CPU.
      joins: it runs in all processes of a job at once.
      environment: variables that it sets; JAX reads them when it is imported.
      only_with: flags of which one must be given for that; empty: always.
    """

    function: str
    computes: bool = False
    joins: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only_with: tuple[str, ...] = ()

    def prepare(self, args: Sequence[str]) -> None:
        """Sets the variables for a call with these arguments."""
        given = {arg.partition("=")[0] for arg in args}
        if not self.only_with or given & set(self.only_with):
            os.environ.update(self.environment)


# Nothing is executed, so no accelerator of this machine should be claimed.
_CPU = {"JAX_PLATFORMS": "cpu"}

COMMANDS = {
    "encode": Command("encode:encode"),
    "verify": Command("verify:verify"),
    "config": Command("config:describe_config"),
    "train": Command("train:train", computes=True, joins=True),
    "evaluate": Command("evaluate:evaluate", computes=True, joins=True),
    "sample": Command("sample:sample", computes=True),
    "layout": Command(
        "layout:layout", environment=_CPU, only_with=("--devices", "--topology")
    ),
    "plan": Command(
        "plan:plan",
        # A program for absent devices cannot be read back from JAX's cache.
        environment=_CPU | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    ),
    "bench step": Command("bench.step:bench_step", computes=True),
    "bench checkpoint": Command("bench.checkpoint:bench_checkpoint", computes=True),
    "bench data": Command("bench.data:bench_data"),
    "sweep": Command("sweep:sweep", computes=True),
    "coordinates": Command("coordinates:coordinates", computes=True),
    "fit": Command("fit:fit"),
    "export": Command("export:export"),
    "import": Command("import_weights:import_weights"),
    "completion": Command("completion:completion"),
}

_FILES = {
    function: f"{__name__}.{file}"
    for file, function in (c.function.split(":") for c in COMMANDS.values())
}

__all__ = ["COMMANDS", "Command", *_FILES]


class _Commands(types.ModuleType):
    """This package: `commands.train` is the function, not the file of that name.

    The function's file is imported at its first use. Python then makes the file an
    attribute of this package; here the function takes its place.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _FILES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_FILES[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FILES and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Commands
