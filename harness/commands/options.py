"""Options and ways to print that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.record import RunSpec
from harness.store import Store
from harness.summary import Summary
from harness.view import print_run

SHOWN = 200  # trials of a run that are listed one by one
RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]


def print_json(result: Any) -> None:
    """Print the one line that is a command's result, for programs to read."""
    print(result if isinstance(result, str) else json.dumps(result))  # noqa: T201 - stdout is what it is for


def print_stored(store: Store, run: RunSpec, summary: Summary) -> None:
    """Print a stored run; of a big one only the trials worth showing, read one at a time."""
    numbers = store.worth_showing(run.run_id, SHOWN) if summary.n > SHOWN else None
    records = store.trials(run.run_id, numbers)
    print_run(Console(), run, records, summary, 0 if numbers is None else summary.n - len(numbers))
