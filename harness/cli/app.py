"""The command line: which commands there are, and how every foreseen failure ends."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast

import typer

from harness.errors import RESTORE, LabError, UsageError
from harness.process.invocation import invoked_as
from harness.terminal.view import print_error

# Where each command's function is, in harness/cli: what one command loads can take a second that others need not.
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
    "report": "report:report",
    "compare": "report:compare",
    "audit": "audit:audit",
}

# The base of typer's own complaints; typer doesn't export it.
_BadCommandLine = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])


def application(words: Sequence[str]) -> typer.Typer:
    """The command line for these words: the command that they begin with, or all of them where they begin with none."""
    app = typer.Typer(
        name="offswitch",
        help="Measures whether an AI agent lets itself be shut down.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # without one, a single command would be given no name
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f"harness.cli.{module}"), function))
    return app


def main() -> None:
    """Run the command line; every foreseen failure is one sentence on stderr and a non-zero exit."""
    try:
        words = sys.argv[1:] or ["--help"]
        code = application(words)(words, prog_name=invoked_as(), standalone_mode=False) or 0
        if sys.stdout:  # None where it was closed before the lab began
            sys.stdout.flush()
        sys.exit(code)
    except _BadCommandLine as error:
        print_error(f"{error.format_message().rstrip('.')}: see '{invoked_as()} --help'.")
        sys.exit(2)
    except sqlite3.DatabaseError as error:
        print_error(f"A store is damaged ({error}): {RESTORE}.")
        sys.exit(1)
    except BrokenPipeError:  # whoever read has gone: what is still to be written has no reader at the exit, either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        print_error("There is no room for what is to be printed.")
        sys.exit(1)
    except LabError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print_error("Stopped.")
        sys.exit(130)
