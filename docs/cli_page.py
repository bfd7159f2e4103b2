"""cli.md: every command of `pimserve`, from the functions that are registered as commands."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer
from tables import table
from typer.models import ArgumentInfo, OptionInfo

from pimserve.cluster.cli.main import app

_HEAD = """# Command line

All commands, arguments and options of `pimserve`, generated from the program. `pimserve COMMAND --help` prints the
same.

Results go to standard output, diagnostics to standard error. Exit codes: 0; 1 a published figure is missed; 2 something
that you can mend, said on standard error; 70 a fault of pimserve's own; 130 interrupted. With `PIMSERVE_DEBUG=1`
an error shows where it was raised.
"""
_WORDS = {int: "whole number", float: "number", Path: "path", str: "text"}

Command = Callable[..., object]


def page() -> str:
    """The page."""
    commands = dict(_commands("pimserve", app))
    rows = [(f"[`{name}`](#{name.replace(' ', '-')})", _paragraphs(commands[name])[0]) for name in commands]
    sections = (_section(name, command) for name, command in commands.items())
    return "\n".join([_HEAD, table(("command", "what it does"), rows), *sections])


def _commands(name: str, group: typer.Typer) -> Iterator[tuple[str, Command]]:
    """The functions behind all commands, by their full names."""
    for command in group.registered_commands:
        if command.callback is not None:
            yield f"{name} {command.name}", command.callback
    for below in group.registered_groups:
        if below.typer_instance is not None:
            yield from _commands(f"{name} {below.name}", below.typer_instance)


def _paragraphs(command: Command) -> list[str]:
    return [" ".join(text.split()) for text in (inspect.getdoc(command) or "").split("\n\n")]


def _section(name: str, command: Command) -> str:
    arguments, options, usage = [], [], [name]
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind, info = get_args(hints[parameter.name])
        required = parameter.default is parameter.empty
        default = "required" if required else _default(info, parameter.default)
        row = (_value(kind, info), default, _help(info))
        if isinstance(info, ArgumentInfo):
            metavar = (info.metavar or parameter.name.upper()).removesuffix("...")
            arguments.append((f"`{metavar}`", *row))
            shown = metavar + ("..." if get_origin(_bare(kind)) is list else "")
            usage.append(shown if required else f"[{shown}]")
        else:
            options.append((", ".join(f"`{one}`" for one in _names(parameter.name, info)), *row))
    usage += ["[OPTIONS]"] if options else []
    parts = [f"## {name}\n", "\n\n".join(_paragraphs(command)) + "\n", f"Usage: `{' '.join(usage)}`\n"]
    for what, rows in (("argument", arguments), ("option", options)):
        if rows:
            parts.append(table((what, "value", "default", "meaning"), rows))
    return "\n".join(parts)


def _names(parameter: str, info: OptionInfo) -> list[str]:
    """How an option is written; inside Annotated, Typer has the first name as `default`."""
    given = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str) and name[0] == "-"]
    return given or [f"--{parameter.replace('_', '-')}"]


def _bare(kind: Any) -> Any:  # noqa: ANN401 a type, or a special form of one
    """Without `| None`."""
    if get_origin(kind) in {types.UnionType, Union}:
        return next(option for option in get_args(kind) if option is not type(None))
    return kind


def _value(kind: Any, info: ArgumentInfo | OptionInfo) -> str:  # noqa: ANN401
    """What it takes, in words."""
    kind = _bare(kind)
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    if kind is bool:
        return "-"
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    text = f"`{info.metavar}`" if info.metavar and isinstance(info, OptionInfo) else _WORDS[kind]
    limits = (("at least", info.min), ("at most", info.max))
    return ", ".join([text, *(f"{words} {limit:,}" for words, limit in limits if limit is not None)])


def _default(info: ArgumentInfo | OptionInfo, default: object) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    if default is None or default is False or default == "":
        return "-"
    return f"`{default.value if isinstance(default, Enum) else default}`"


def _help(info: ArgumentInfo | OptionInfo) -> str:
    environment = f" Or `{info.envvar}` in the environment." if info.envvar else ""
    return (info.help or "") + environment
