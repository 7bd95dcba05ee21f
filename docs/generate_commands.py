"""Prints docs/commands.md, the reference of all commands and options, from the command line's own help texts.

Run it after a change to a command: ``.venv/bin/python docs/generate_commands.py > docs/commands.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from harness.cli.app import application

COMMON = {"plugins", "providers", "verbose", "log_level"}  # options that every command has
PLACEHOLDERS: dict[type, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
INTRODUCTION = """# Commands

Every command and option. This page is generated from the command line itself: change the help texts in `harness/cli/`,
then run `.venv/bin/python docs/generate_commands.py > docs/commands.md`.

Type `./lab COMMAND`, `offswitch COMMAND` where the wheel is installed, or `python -m harness COMMAND` in the virtual
environment. `./lab COMMAND --help` prints the same text as this page. Two more words are known to `./lab` alone:
`./lab setup` installs what is missing, and `./lab test` runs the tests.

| exit code | meaning |
|---|---|
| 0 | the command did what it was asked |
| 1 | it failed, and one sentence on stderr says why; or `compare` found a figure that differs |
| 2 | it was asked for something it can't do: an option, a name, a file |
| 3 | `audit` found something that `--fail-on` names |
| 130 | it was stopped by Ctrl-C or by SIGTERM; finished trials are kept |"""


def commands() -> dict[str, Any]:
    """Return the commands of the command line by name."""
    group: Any = typer.main.get_command(application([]))  # typer brings its own click, which has no types
    return dict(group.commands)


def document() -> str:
    """Return the whole page as Markdown."""
    known = commands()
    common = [each for each in next(iter(known.values())).params if each.name in COMMON]
    parts = [INTRODUCTION, "## Options that every command has", table("option", common)]
    for name, command in known.items():
        parts += [f"## {name}", *section(name, command)]
    return "\n\n".join(parts) + "\n"


def section(name: str, command: Any) -> Iterator[str]:
    """Yield the usage line, the help text and the tables of one command."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name not in COMMON]
    usage = " ".join(["./lab", name, *map(argument_name, arguments), "[OPTIONS]"])
    yield f"`{usage}`"
    yield escaped(command.help)
    if arguments:
        yield table("argument", arguments)
    if options:
        yield table("option", options)


def table(kind: str, parameters: Iterable[Any]) -> str:
    """Return a Markdown table with one row for each option or argument."""
    return "\n".join([f"| {kind} | meaning | default |", "|---|---|---|", *map(row, parameters)])


def row(parameter: Any) -> str:
    """Return one table row. A default that stands in the help text moves to its own column."""
    text = parameter.help or ""
    stated = re.search(r" *\[default: ([^\]]*)\]", text)
    default = stated[1] if stated else default_of(parameter)
    text = text.replace(stated[0], "") if stated else text
    if parameter.envvar:
        default = f"{default or 'none'}, or what the variable `{parameter.envvar}` says"
    return f"| `{shown_name(parameter)}` | {escaped(text.strip())} | {escaped(default)} |"


def default_of(parameter: Any) -> str:
    """Return an option's default value in words."""
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or parameter.count:
        return "" if value is None else "off"
    return str(value.value if isinstance(value, Enum) else value)


def shown_name(parameter: Any) -> str:
    """Return the spelling of an option with a placeholder for its value, or of an argument."""
    if parameter.param_type_name == "argument":
        return argument_name(parameter)
    names = ", ".join(parameter.opts)
    if parameter.is_flag or parameter.count:
        return names
    return f"{names} {placeholder(parameter)}" + (" ..." if parameter.multiple else "")


def placeholder(parameter: Any) -> str:
    """Return what stands for an option's value: a word in capitals, or its choices."""
    kind = parameter.type_descriptor.annotation
    kind = getattr(kind, "__args__", (kind,))[0]
    if issubclass(kind, Enum):
        return "{" + ",".join(str(each.value) for each in kind) + "}"
    return PLACEHOLDERS[kind]


def argument_name(parameter: Any) -> str:
    """Return an argument's placeholder, in brackets where it may be left out."""
    if parameter.metavar:
        return str(parameter.metavar)
    name = str(parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def escaped(text: str) -> str:
    """Return a text on one line, with the characters escaped that would end a table cell or begin a tag."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - stdout is what it is for
