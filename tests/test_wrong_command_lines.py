# SPDX-License-Identifier: Apache-2.0
"""Wrong values for every flag and every config field, made from their types.

A new flag or field is covered by the type that it declares: what its rules do not allow
must end with one line that names it and the value, and leave nothing behind.
"""

import dataclasses
import functools
import math
import types
import typing
from pathlib import Path
from typing import Annotated

from rfjax import commands, main
from rfjax.commands import COMMANDS, command_line
from rfjax.config import from_config_dict
from rfjax.config_files import DATA_SET, RUN, SWEEP, load_config_file
from rfjax.data.encode import EncodeConfig
from rfjax.data.sources import SOURCES
from rfjax.scaling.study.budget import ForecastConfig
from rfjax.scaling.study.grid import GridConfig
from rfjax.schema import kinds_of
from rfjax.value_types import Bounds, Filled, Local, OneOf, check, hints_of, rules_of

ROOT = Path(__file__).parents[1]
CONFIGS = {
    RUN: f"--config={ROOT}/configs/debug.py",
    SWEEP: f"--config={ROOT}/configs/sweeps/emoji_depth.py",
    DATA_SET: f"--config={ROOT}/configs/data/emoji.py",
}
# What else a command needs before its flags are looked at.
NEEDS = {
    "encode": ["--out=o"],
    "train": ["--workdir=w"],
    "evaluate": ["--workdir=w"],
    "sample": ["--workdir=w", "--sheet"],
    "plan": ["--topology=v5e:2x2"],
    "sweep": ["--workdir=w"],
    "coordinates": ["--out=o"],
    "fit": ["--out=o", "--runs=w"],
    "export": ["--workdir=w", "--out=o"],
    "import": ["--from=f", "--workdir=w"],
}
# Flags and fields whose text has a form of its own: what is wrong there.
FORMS = {
    "--config": ["", "gs://b/c.py", "no.py", "~nobody-here/c.py"],
    "--columns": ["", "N", "=N"],
    "--budget": ["", "-1", "0", "nan", "inf", "1e999", "much", "1e20 "],
    "--forecast": ["", "depth", "depth=-2", "depth=nan", "samples=", "width=2"],
    "--depths": ["", "0", "1;2", "1,-2", "1,", "1,2.5"],
    "--cells": ["", ",", "a,,b"],
    "--shard": ["", "1", "2/2", "-1/2", "a/b", "1/2/3", "1.5/2"],
    "--shell": ["", "csh"],
    "objective": ["", "rf/lognrm(0,1)"],
    "name": ["", "my emoji"],
    "parameterisations": ["3", "['standard', 'standard']"],
}


def plain_and_rules(hint):
    """The plain type within a type, and the rules around it."""
    rules = []
    while True:
        if typing.get_origin(hint) is Annotated:
            rules += rules_of(hint)
            hint = typing.get_args(hint)[0]
        elif typing.get_origin(hint) in (types.UnionType, typing.Union):
            members = [a for a in typing.get_args(hint) if a is not type(None)]
            if Path in members:
                return Path, rules
            (hint,) = members
        else:
            return hint, rules


def outside(rule):
    """Numbers just outside of what a rule allows."""
    if math.isfinite(rule.low):
        yield rule.low if rule.open_low else rule.low - 1
        if rule.besides is not None:
            yield from (-2, 0)
    if math.isfinite(rule.high):
        yield rule.high if rule.open_high else rule.high + 1


def wrong_values(hint):
    """Texts that a type must not take; none if it says nothing about itself."""
    plain, rules = plain_and_rules(hint)
    origin = typing.get_origin(plain)
    if isinstance(origin, type) and issubclass(origin, typing.Sequence):
        element = typing.get_args(plain)[0]
        yield from ["3", "None"] if origin is tuple else []
        for text in wrong_values(element):
            if origin is not tuple:
                yield text
            elif "[" not in text:
                quoted = plain_and_rules(element)[0] is str
                yield f"[{text!r}]" if quoted or not text else f"[{text}]"
        return
    for rule in rules:
        if isinstance(rule, Bounds):
            yield from dict.fromkeys(str(value) for value in outside(rule))
        elif isinstance(rule, OneOf):
            yield from ["", "nothing-of-the-kind"]
        elif isinstance(rule, Filled):
            yield from ["", " "]
        elif isinstance(rule, Local):
            yield from ["", "gs://b/x", "file:///x", "~nobody-here/x"]
    if plain is int:
        yield from ["2.5", str(10**30)]
    elif plain is float:
        yield from ["x", "nan"]
    elif plain is bool:
        yield "3"


@functools.cache
def flags_of(command):
    """Flag -> its type, of a command."""
    app = command_line.make_app()
    for word in command.split():
        app = app[word]
    function = getattr(commands, COMMANDS[command].function.partition(":")[2])
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        argument.name: hints[argument.field_info.name]
        for argument in app.assemble_argument_collection()
        if argument.parse
    }


def flag_cases():
    """(command, flag, value) of every flag of every command."""
    for command in COMMANDS:
        for flag, hint in flags_of(command).items():
            for value in dict.fromkeys(FORMS.get(flag) or wrong_values(hint)):
                yield command, flag, value


def fields_of(config, prefix=""):
    """(name, type) of every field that a config has, sections left out."""
    hints = hints_of(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        elif kinds_of(field) is None and not dataclasses.is_dataclass(
            plain_and_rules(hints[field.name])[0]
        ):
            yield prefix + field.name, hints[field.name]


def field_cases():
    """(command, field, value) of every field of the three kinds of config."""
    run = load_config_file(f"{ROOT}/configs/debug.py")
    source = SOURCES["emoji"]()
    configs = [
        ("train", "", from_config_dict(run)),
        ("sweep", "grid.", GridConfig(depths=(1,), num_samples=(64,))),
        ("sweep", "forecast.", ForecastConfig()),
        ("encode", "", EncodeConfig(name="n", source=source)),
    ]
    for command, prefix, config in configs:
        for name, hint in fields_of(config, prefix):
            for value in dict.fromkeys(FORMS.get(name) or wrong_values(hint)):
                yield command, name, value
    for section in ("model", "data", "train", "sample", "evaluators"):
        yield from (("train", section, value) for value in ("3", "/tars", "None"))


def test_every_type_says_what_is_wrong_and_what_is_right():
    """A field of a type without wrong values would silently not be tried."""
    config = from_config_dict(load_config_file(f"{ROOT}/configs/debug.py"))
    for name, hint in fields_of(config):
        assert FORMS.get(name) or list(wrong_values(hint)), name
        plain, rules = plain_and_rules(hint)
        if plain not in (int, float):
            continue
        bounds = [rule for rule in rules if isinstance(rule, Bounds)]
        # Controls: the nearest numbers that are allowed.
        inside = [b.low for b in bounds if math.isfinite(b.low) and not b.open_low]
        inside += [b.besides[0] for b in bounds if b.besides is not None]
        for value in inside:
            assert check(plain(value), hint, name=name) == value


def run(command, *flags, capsys):
    """Exit status and the error of a command line."""
    kind = {"sweep": SWEEP, "encode": DATA_SET}.get(command, RUN)
    needed = [*NEEDS.get(command, [])]
    if "--config" in flags_of(command):
        needed.append(CONFIGS[kind])
    given = flags[0].partition("=")[0]
    needed = [flag for flag in needed if flag.partition("=")[0] != given]
    status = main.run([*command.split(), *needed, *flags])
    return status, capsys.readouterr().err


def check_refused(cases, *, flag_of, tmp_path, monkeypatch, capsys):
    """Every case ends with one line, names what is wrong, and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    wrong = []
    for command, name, value in cases:
        status, error = run(command, f"{flag_of(name)}={value}", capsys=capsys)
        rewritten = any(part in value for part in WRITTEN_OTHERWISE)
        shown = value.strip(" []'\"")[:20]
        problems = [
            f"status {status}" * (status != 1),
            "several lines" * (error.count("\n") != 1),
            "no command" * (not error.startswith(f"rfjax {command}: ")),
            "unnamed" * (name not in error),
            "no value" * (shown not in error and not rewritten),
            "files" * bool(list(tmp_path.iterdir())),
        ]
        if any(problems):
            found = ", ".join(filter(None, problems))
            wrong.append(f"{command} {name}={value}: {found}: {error.strip()[-200:]}")
    assert not wrong, "\n".join(wrong)


# Parts of values that an error shows as Python reads them, or alone.
WRITTEN_OTHERWISE = ("1e999", "depth=", "samples=", ",,")


def test_wrong_flags_end_with_one_line(tmp_path, monkeypatch, capsys):
    cases = list(flag_cases())
    assert len(cases) > 250
    check_refused(
        cases, flag_of=str, tmp_path=tmp_path, monkeypatch=monkeypatch, capsys=capsys
    )


def test_wrong_fields_end_with_one_line(tmp_path, monkeypatch, capsys):
    cases = list(field_cases())
    assert len(cases) > 250
    check_refused(
        cases,
        flag_of=lambda name: f"--config.{name}",
        tmp_path=tmp_path,
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
