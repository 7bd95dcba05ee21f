"""The command ``export``, which writes stored trials to a file for other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import RunsDir
from harness.errors import UsageError
from harness.store.exporter import all_exporters, export, exporter_named, origin_of
from harness.store.store import Store, StoredRun
from harness.terminal.text import print_note

FORMATS = ", ".join(f"{each.name} ({each.about})" for each in all_exporters().values())


def export_runs(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or 'last'.")],
    to: Annotated[str, typer.Option("--to", help=f"The format: {FORMATS}.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. [default: the runs' ids and the format's suffix, in the current folder]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write the finished trials of runs to a file, to be read by other programs."""
    exporter = exporter_named(to)
    with Store(runs_dir, create=False) as store:
        chosen = list({run.spec.run_id: run for run in map(store.run, runs)}.values())
        file = out or Path(f"{'-'.join(run.spec.run_id for run in chosen)[:200]}{exporter.suffix}")
        _check_free(file, force=force)
        finished = [_finished(store, run) for run in chosen]
        if not any(finished):
            raise UsageError("These runs have no finished trial yet, so there is nothing to export.")
        for run, n in zip(chosen, finished, strict=True):
            if n < run.spec.n:
                print_note(f"Run '{run.spec.run_id}' is unfinished: {n} of its {run.spec.n} trials are exported.")
        export(store, chosen, exporter, file)
    print_note(f"wrote {file} with exporter {origin_of(exporter)}")


def _check_free(file: Path, *, force: bool) -> None:
    if not os.path.exists(file):  # unlike the method, it doesn't fail if the name is too long
        return
    if not file.is_file():
        raise UsageError(f"{file} isn't a regular file: give another --out.")
    if not force:
        raise UsageError(f"There is already a file {file}: give another --out, or --force to replace it.")


def _finished(store: Store, run: StoredRun) -> int:
    return sum(store.counts(run.spec.run_id).values())
