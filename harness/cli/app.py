"""The entry point of the command line.

It runs the requested command and reports each expected error in one sentence.
"""

from __future__ import annotations

import errno
import inspect
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from harness.agents.providers import presets
from harness.cli.options import with_settings
from harness.errors import RESTORE, LabError, UsageError
from harness.process.invocation import invoked_as
from harness.process.logs import LEVELS, log_to_terminal
from harness.resources import plugins
from harness.resources.data import ROOT
from harness.resources.plugins import VARIABLE
from harness.tasks.registry import KINDS, names
from harness.terminal.text import print_error

# Where each command's function is. Modules are loaded on demand, since some take a second.
COMMANDS = {
    "trial": "trial:trial",
    "resume": "trial:resume",
    "show": "stored:show",
    "list": "stored:list_runs",
    "judge": "stored:judge",
    "grade": "grade:grade",
    "corpus": "corpus:corpus",
    "clean": "clean:clean",
    "conditions": "conditions:list_conditions",
    "experiment": "experiment:experiment",
    "power": "power:power",
    "export": "export:export_runs",
    "report": "report:report",
    "compare": "report:compare",
    "audit": "audit:audit",
}

Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugins", help="A folder with plugins of your own; may be given several times.", envvar=VARIABLE),
]
Providers = Annotated[
    Path | None, typer.Option("--providers", help="A file with presets of further providers, beside the shipped ones.")
]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log to the terminal; -vv logs more.")]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", help=f"Log to the terminal from this level: {', '.join(LEVELS)}.")
]


def application(words: Sequence[str]) -> typer.Typer:
    """Build the command-line app.

    ``words`` are the command-line arguments. If the first argument is a command's name, only that command is loaded,
    which is faster. Otherwise, all commands are loaded.
    """
    app = typer.Typer(
        name="offswitch",
        help="Measures whether an AI agent lets itself be shut down.",
        epilog=f"\b\nDocuments and examples: {ROOT / 'docs'}",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # without one, typer would give a single command no name
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        command = getattr(import_module(f"harness.cli.{module}"), function)
        app.command(name)(with_common_options(with_settings(command)))
    return app


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the options that every command has.

    The options -v and --log-level start logging before the command runs. The options --plugins and --providers have no
    effect here, because ``use_plugins`` has already read them from the command line.
    """

    @wraps(command)
    def run(*args: Any, verbose: int = 0, log_level: str | None = None, **options: Any) -> None:
        log_to_terminal(verbose, log_level)
        options = {name: value for name, value in options.items() if name not in ("plugins", "providers")}
        command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    added = {
        "plugins": (Plugins, None),
        "providers": (Providers, None),
        "verbose": (Verbose, 0),
        "log_level": (LogLevel, None),
    }
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in added.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *keywords])  # type: ignore[attr-defined] # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in (*signature.parameters.values(), *keywords)}
    del run.__wrapped__  # else typer would read the options of the command alone
    return run


def use_plugins(words: Sequence[str]) -> None:
    """Load the plugins and providers that the command line names.

    The command line can name folders of plugins, the path of a single plugin, and a file of providers. These are loaded
    before the options are read, because plugins add options and names to the commands. Raises UsageError if a folder, a
    path or the file can't be used.
    """
    plugins.use_folders([Path(each) for each in _values(words, "--plugins")])
    for file in _values(words, "--providers"):
        presets.use_file(Path(file))
    for kind in KINDS if list(words[:1]) == ["trial"] else ():  # no other command has settings
        for value in _values(words, f"--{kind.noun}"):
            plugins.name_given(kind, value, names(kind), Path())


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    """Yield each value that the command line ``words`` gives to ``option``.

    A value is the next word after the option, or follows an equals sign, as in ``--plugins=FOLDER``.
    """
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if word == "--":
            return
        if word.startswith(f"{option}="):
            yield word.removeprefix(f"{option}=")
        elif word == option:
            yield following


def main() -> None:
    """Run the command line.

    If an expected error occurs, print one sentence on stderr and exit with a non-zero code.
    """
    words = sys.argv[1:] or ["--help"]
    try:
        use_plugins(words)
        code = application(words)(words, prog_name=invoked_as(), standalone_mode=False) or 0
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
        sys.exit(code)
    except TyperException as error:
        command = f" {words[0]}" if words[0] in COMMANDS else ""
        print_error(f"{error.format_message().rstrip('.')}: see '{invoked_as()}{command} --help'.")
        sys.exit(2)
    except sqlite3.DatabaseError as error:
        print_error(f"A store is damaged ({error}): {RESTORE}.")
        sys.exit(1)
    except BrokenPipeError:  # the reader is gone, so nothing more can be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        print_error("The output can't be written: no space is left on its device.")
        sys.exit(1)
    except LabError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print_error("Stopped.")
        sys.exit(130)
