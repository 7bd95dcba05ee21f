"""The command ``experiment``, which runs the missing trials of an experiment and prints its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import AsJson, RunsDir, print_json
from harness.errors import UsageError
from harness.runs.request import DEFAULT_CONCURRENCY
from harness.terminal.text import print_error, print_note


def experiment(  # noqa: PLR0917 - typer passes options by name
    file: Annotated[Path, typer.Argument(help="The experiment's file, such as experiments/calibration.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Fill in a value that the file leaves open.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only cells whose name contains this text.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be run, and run nothing.")] = False,
    concurrency: Annotated[
        int, typer.Option(help="Trials alive at a time; the engine limits how many start at once.")
    ] = DEFAULT_CONCURRENCY,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Run the incomplete cells of an experiment."""
    from harness.experiments.file import read_experiment  # noqa: PLC0415 - no other command needs it
    from harness.experiments.job import run_missing, states  # noqa: PLC0415 - as above
    from harness.experiments.table import print_cells  # noqa: PLC0415 - as above

    plan = read_experiment(file, _values(set_ or []))
    cells = [cell for cell in plan.cells if (only or "").lower() in cell.name.lower()]
    if not cells:
        raise UsageError(f"--only '{only}': no cell of {file} has this in its name.")
    todo = [each for each in states(plan, cells, runs_dir) if each.state != "complete"]
    stopped, interrupted = False, False
    for job in () if dry_run else run_missing(plan, todo, runs_dir, concurrency, print_note):
        stopped |= job.stopped is not None
        if job.stopped:
            print_error(f"Run '{job.run.run_id}': {job.stopped}")
        if job.interrupted:
            interrupted = True
            break
    reached = states(plan, cells, runs_dir)
    if as_json_:
        about = plan.model_dump(mode="json", include={"name", "about", "sha256", "margin", "seed"})
        complete = all(each.state == "complete" for each in reached)
        print_json({**about, "complete": complete, "cells": [each.as_json() for each in reached]})
    else:
        print_cells(Console(), plan, reached)
    if interrupted:
        print_error("Stopped: what is finished is kept, and the same command goes on from there.")
        raise typer.Exit(130)
    if stopped:
        raise typer.Exit(1)


def _values(given: list[str]) -> dict[str, str]:
    values = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (equals and name and value):
            raise UsageError(f"--set {each} won't do: write --set NAME=VALUE.")
        values[name] = value
    return values
