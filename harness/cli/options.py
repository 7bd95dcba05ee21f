"""Defines options and output functions that several commands share."""

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

MAX_LISTED = 200  # trials of a run that are listed one by one
RunsDir = Annotated[Path, typer.Option(help="The folder that holds the runs.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]

# How a live model is reached, sampled, waited for and paid.
BaseUrl = Annotated[
    str | None, typer.Option(help="Address of your own server; its key, if any, is read from OFFSWITCH_API_KEY.")
]
Api = Annotated[
    str | None, typer.Option(help="responses, chat or messages. [default: the provider's; chat with --base-url]")
]
Effort = Annotated[str | None, typer.Option(help="Reasoning effort of a live model. [default: the model's]")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature of a live model. [default: the model's]")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens that a live model may write in a turn. [default: the model's]")
]
CallLimit = Annotated[float, typer.Option(help="Seconds that one request to a provider may take.")]
Patience = Annotated[
    float, typer.Option(help="Minutes for which a failing request is retried, from its first failure.")
]
MaxCost = Annotated[float | None, typer.Option(help="US dollars after which a run is stopped. [default: no limit]")]
MaxTokensTotal = Annotated[
    int | None, typer.Option(help="Tokens, read and written, after which a run is stopped. [default: no limit]")
]
Prices = Annotated[Path | None, typer.Option(help="A file of prices that take precedence over the shipped ones.")]
NoPreflight = Annotated[
    bool, typer.Option("--no-preflight", help="Don't check key and model with the provider beforehand.")
]


def print_json(result: Any) -> None:
    """Print a command's result as one line of JSON on stdout.

    A string must already be JSON and is printed unchanged.
    """
    print(result if isinstance(result, str) else json.dumps(result))  # noqa: T201 - stdout is what it is for


def print_stored(store: Store, run: RunSpec, summary: Summary) -> None:
    """Print a stored run and its trials.

    If the run has more than MAX_LISTED trials, print only a selection of them.
    """
    numbers = store.worth_showing(run.run_id, MAX_LISTED) if summary.n > MAX_LISTED else None
    records = store.trials(run.run_id, numbers)
    print_run(Console(), run, records, summary, 0 if numbers is None else summary.n - len(numbers))
