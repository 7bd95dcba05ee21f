"""The command line: which commands there are, and how every foreseen failure ends."""

from __future__ import annotations

import sys
from typing import cast

import typer

from harness.commands.audit import audit
from harness.commands.clean import clean
from harness.commands.conditions import list_conditions
from harness.commands.corpus import corpus
from harness.commands.experiment import experiment
from harness.commands.power import power
from harness.commands.report import compare, report
from harness.commands.stored import judge, list_runs, show
from harness.commands.trial import resume, trial
from harness.errors import LabError, UsageError
from harness.view import print_error

app = typer.Typer(
    name="offswitch",
    help="Measures whether an AI agent lets itself be shut down.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# The base of typer's own complaints; typer doesn't export it.
_BadCommandLine = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])

app.command()(trial)
app.command()(resume)
app.command()(show)
app.command("list")(list_runs)
app.command()(judge)
app.command()(corpus)
app.command()(clean)
app.command("conditions")(list_conditions)
app.command()(experiment)
app.command()(power)
app.command()(report)
app.command()(compare)
app.command()(audit)


def main() -> None:
    """Run the command line; every foreseen failure is one sentence on stderr and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _BadCommandLine as error:
        print_error(f"{error.format_message().rstrip('.')}: see 'offswitch --help'.")
        sys.exit(2)
    except LabError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print_error("Stopped.")
        sys.exit(130)
