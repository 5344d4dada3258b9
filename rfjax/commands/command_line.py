# SPDX-License-Identifier: Apache-2.0
"""Builds the command line from the commands' functions, with cyclopts.

Cyclopts, because a flag is then written once: its type and default in the signature of
a plain function, its help in a Google docstring. typer would repeat the help beside the
type; tyro does not load commands lazily. It takes 50 ms to import, and a converter of
our own reads what is no plain value.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import shlex
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cyclopts
import rich.console
from cyclopts.help import HelpPanel

from rfjax.commands import COMMANDS, flag_text
from rfjax.errors import UserError
from rfjax.value_types import Filled, check

GROUPS = {"bench": "Times a train step, its saves, or reading data on this machine."}
WIDTH = 88  # of help


class UnknownCommand(UserError):
    """A command line begins with no command."""


def name_of(args: Sequence[str]) -> str | None:
    """The command that a command line begins with, as "bench step".

    None if it names none, or a group such as "bench": that asks for help.

    Raises:
      UnknownCommand: it names what does not exist.
    """
    if args[:1] and args[0].startswith("-") and args[0] not in ("-h", "--help"):
        raise UnknownCommand(f"the command comes first, got {args[0]!r}.")
    args = args[1:] if args[:1] == ["help"] else args
    words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))[:2]
    for num_words in (2, 1):
        if (name := " ".join(words[:num_words])) in COMMANDS:
            return name
    if not words or " ".join(words) in GROUPS:
        return None
    word = " ".join(words if words[0] in GROUPS else words[:1])
    near = difflib.get_close_matches(word, [*COMMANDS, *GROUPS], n=1)
    hint = f"did you mean {near[0]}?" if near else "rfjax --help lists them all."
    raise UnknownCommand(f"no command {word!r}; {hint}")


def make_app() -> cyclopts.App:
    """All commands; a command's file is imported when the command is used."""
    app = cyclopts.App(
        name="rfjax",
        help="Rectified-flow transformers in JAX.",
        usage="rfjax COMMAND --FLAG=VALUE ...",
        help_format="plaintext",
        help_formatter=_print_rows,
        help_epilogue="rfjax COMMAND --help lists the flags of a command.\n"
        "rfjax completion --help says how to complete them with the Tab key.",
        version_flags=(),
        console=rich.console.Console(width=WIDTH),
        default_parameter=cyclopts.Parameter(
            allow_repeating=True,
            negative_bool=("no-", "no"),
            negative_iterable=(),
            show_choices=False,
            converter=flag_text.read,
        ),
    )
    groups = {None: app}
    for group, summary in GROUPS.items():
        usage = f"rfjax {group} COMMAND --FLAG=VALUE ..."
        # In help it stands with the first of its commands.
        place = [name.split()[0] for name in COMMANDS].index(group)
        groups[group] = cyclopts.App(
            name=group, help=summary, usage=usage, sort_key=place
        )
        app.command(groups[group])
    for place, (name, command) in enumerate(COMMANDS.items()):
        *group, word = name.split()
        description, example = documentation(name)
        groups[group[0] if group else None].command(
            f"rfjax.commands.{command.function}",
            name=word,
            help=description,
            sort_key=place,
            usage=f"rfjax {name} --FLAG=VALUE ...",
            help_epilogue=f"Example:\n{textwrap.indent(example, '  ')}",
        )
    return app


def documentation(name: str) -> tuple[str, str]:
    """Description and example of a command, without importing its file."""
    file, function = COMMANDS[name].function.split(":")
    path = Path(__file__).parent / f"{file.replace('.', '/')}.py"
    tree = ast.parse(path.read_text("utf-8"))
    (node,) = (n for n in tree.body if getattr(n, "name", None) == function)
    text = ast.get_docstring(node)
    example = text.partition("Example:\n")[2]
    return text.partition("\n\nArgs:")[0], inspect.cleandoc(example)


def parse(
    args: Sequence[str],
    *,
    report: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> Callable[[], Any]:
    """The call of a command's function that a command line asks for.

    Args:
      args: command, flags, and overrides of its config.
      report: given to functions that report what they do.
      warn: given to functions that go on when a part of their work fails.

    Raises:
      UserError: unknown, missing or malformed flags, or a config that cannot be read.
    """
    name = name_of(args)
    for arg in args:
        Filled().check(arg or "-", name="the command line")  # other names are not UTF-8
    overrides = [arg for arg in args if arg.startswith("--config.")]
    flags = [arg for arg in args if arg not in overrides]
    try:
        function, bound, hidden = make_app().parse_args(
            flags, print_error=False, exit_on_error=False, verbose=False
        )
    except cyclopts.CycloptsError as error:
        if isinstance(error.__cause__, UserError):
            text = str(error.__cause__)
            if text.startswith(flag_text.UNNAMED):
                text = error.argument.name + text.removeprefix(flag_text.UNNAMED)
            raise UserError(text) from error
        raise UserError(_one_line(error, name, flags)) from error
    _apply_rules(function, bound, flags=_flag_names(name))
    readers = _config_readers(function)
    if overrides and not readers:
        raise UserError(f"takes no {overrides[0]}; see rfjax {name} --help.")
    for parameter, reader in readers.items():
        bound.arguments[parameter] = reader(bound.arguments[parameter], overrides)
    for parameter, receiver in {"report": report, "warn": warn}.items():
        if parameter in hidden:
            bound.arguments[parameter] = receiver
    return functools.partial(function, *bound.args, **bound.kwargs)


def print_help(name: str | None, args: Sequence[str]) -> None:
    """Prints the help of a command, of a group of commands, or of all."""
    words = name.split() if name else [arg for arg in args[:2] if arg in GROUPS]
    make_app()([*words, "--help"], result_action="return_value")


def _config_readers(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> the `config_files.Reader` in its type."""
    from rfjax.config_files import Reader  # imports JAX, which help can do without

    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: part
        for name, hint in hints.items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, Reader)
    }


def _apply_rules(
    function: Callable[..., Any],
    bound: inspect.BoundArguments,
    *,
    flags: Mapping[str, str],
) -> None:
    """Checks the values of flags by the rules in their types, and expands paths."""
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter, value in bound.arguments.items():
        flag = flags.get(parameter, parameter)
        bound.arguments[parameter] = check(value, hints[parameter], name=flag)


def _arguments_of(name: str) -> list[cyclopts.Argument]:
    """The arguments of a command that are flags."""
    app = functools.reduce(lambda app, word: app[word], name.split(), make_app())
    arguments = app.assemble_argument_collection(parse_docstring=True)
    return [argument for argument in arguments if argument.parse]


def _flag_names(name: str) -> dict[str, str]:
    """Parameter of a command's function -> its flag."""
    return {each.field_info.name: each.name for each in _arguments_of(name)}


def _one_line(error: cyclopts.CycloptsError, name: str, args: Sequence[str]) -> str:
    """What is wrong with the flags, in one line, and the remedy."""
    see = f"see rfjax {name} --help."
    flags = {
        flag: " ".join((argument.parameter.help or "").split())
        for argument in _arguments_of(name)
        for flag in argument.names
    }
    unused = list(error.unused_tokens or ())
    if isinstance(error, cyclopts.UnknownOptionError):
        unused.append(error.token.keyword or error.token.value)
    if isinstance(error, cyclopts.MissingArgumentError) and error.keyword:
        value = "".join(args[args.index(error.keyword) + 1 :][:1])
        if value.startswith("-") and value.partition("=")[0] not in flags:
            return (
                f"{error.keyword} needs a value, got {value!r} behind it; write "
                f"{shlex.quote(f'{error.keyword}={value}')} if that is the value."
            )
        return f"{error.keyword} needs a value; {see}"
    for token in unused:  # before what is missing: that may be what was mistyped
        flag = token.partition("=")[0]
        if flag.startswith("-") and flag.replace("_", "-") not in flags:
            near = difflib.get_close_matches(flag, flags, n=1)
            hint = f"did you mean {near[0]}?" if near else see
            return f"no flag {flag}; {hint}"
    if isinstance(error, cyclopts.MissingArgumentError):
        flag = error.argument.name
        return f"needs {flag}: {flags[flag].partition('. ')[0].rstrip('.')}; {see}"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"takes flags only, got {unused[0]!r}; write --NAME=VALUE."
    text = " ".join(str(error).split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; {see}".replace("?; ", "? ")


def _print_rows(console: Any, options: Any, panel: HelpPanel) -> None:
    """One panel of help: a row for each flag or command, its text beside it."""
    if not panel.entries:
        return
    rows = []
    for entry in panel.entries:
        form = ", ".join((*entry.positive_names, *entry.positive_shorts))
        if entry.default == "True":
            form += f", {entry.negative_names[0]}"
        if panel.format == "parameter" and entry.metavar:
            form += f"={entry.metavar.partition('|')[0]}"
        words = "".join(part.text for part in console.render(entry.description or ""))
        text = " ".join(words.split())
        if entry.required:
            text += " (required)"
        elif entry.default not in (None, "()", "False"):
            text += f" (default {entry.default})"
        rows.append((form, text))
    indent = min(26, 4 + max((len(form) for form, _ in rows), default=0))
    for form, text in rows:
        lines = textwrap.wrap(text, WIDTH - indent) or [""]
        if len(form) > indent - 4:
            console.out(f"  {form}", highlight=False)
        else:
            lines[0] = f"  {form:<{indent - 2}}{lines[0]}"
        for index, line in enumerate(lines):
            beside = index == 0 and len(form) <= indent - 4
            console.out(line if beside else " " * indent + line, highlight=False)
    console.out("")
