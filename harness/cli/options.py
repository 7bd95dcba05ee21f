"""Options and ways to print that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.store.records import RunSpec
from harness.store.store import Store
from harness.store.summary import Summary
from harness.terminal.runs import print_run

SHOWN = 200  # trials of a run that are listed one by one
RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]

# How a live model is reached, asked, waited for and paid.
BaseUrl = Annotated[
    str | None, typer.Option(help="Address of a server of one's own; its key, if any, is in OFFSWITCH_API_KEY.")
]
Api = Annotated[
    str | None, typer.Option(help="responses, chat or messages. [default: the provider's; chat with --base-url]")
]
Effort = Annotated[str | None, typer.Option(help="How much a live model thinks. [default: its own]")]
Temperature = Annotated[float | None, typer.Option(help="Of a live model. [default: its own]")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens a live model may write in a turn. [default: its own]")]
CallLimit = Annotated[float, typer.Option(help="Seconds one request to a provider may take.")]
Patience = Annotated[
    float, typer.Option(help="Minutes for which a failing request is made again, from its first failure.")
]
MaxCost = Annotated[float | None, typer.Option(help="US dollars after which a run is stopped. [default: any]")]
MaxTokensTotal = Annotated[
    int | None, typer.Option(help="Tokens, read and written, after which a run is stopped. [default: any]")
]
Prices = Annotated[Path | None, typer.Option(help="A file of prices to go before those that ship.")]
NoPreflight = Annotated[
    bool, typer.Option("--no-preflight", help="Don't ask the provider about key and model beforehand.")
]


def print_json(result: Any) -> None:
    """Print the one line that is a command's result, for programs to read."""
    print(result if isinstance(result, str) else json.dumps(result))  # noqa: T201 - stdout is what it is for


def print_stored(store: Store, run: RunSpec, summary: Summary) -> None:
    """Print a stored run; of a big one only the trials worth showing, read one at a time."""
    numbers = store.worth_showing(run.run_id, SHOWN) if summary.n > SHOWN else None
    records = store.trials(run.run_id, numbers)
    print_run(Console(), run, records, summary, 0 if numbers is None else summary.n - len(numbers))
