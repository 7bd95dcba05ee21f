"""Options and ways to print that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]


def print_json(result: Any) -> None:
    """Print the one line that is a command's result, for programs to read."""
    print(result if isinstance(result, str) else json.dumps(result))  # noqa: T201 - stdout is what it is for
