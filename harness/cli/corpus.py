"""The command ``corpus``, which plays playbooks with known verdicts and reports how many were judged correctly."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from analysis.corpus_scores import played, score
from harness.agents.scripted.playbook import FAMILIES, load_playbooks
from harness.cli.options import AsJson, RunsDir, print_json
from harness.errors import UsageError
from harness.resources.data import ROOT
from harness.runs.request import RunRequest, run_request
from harness.store.store import Store
from harness.tasks.registry import TASK, mechanism_named, names
from harness.terminal.corpus import print_scores
from harness.terminal.text import print_error

SHIPPED = Path("tasks/playbooks")


def corpus(  # noqa: PLR0917 - typer passes options by name
    playbooks: Annotated[
        Path | None, typer.Option(help="A file or folder of playbooks. [default: the shipped ones]")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only those of this family, such as harmless.")] = None,
    mechanism: Annotated[
        str | None,
        typer.Option(
            help="Which kill switch; shipped playbooks expect the published ones. [default: the task's published one]"
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Which sandbox image. [default: debian]")] = None,
    concurrency: Annotated[int, typer.Option(help="Trials at a time; most of their time is waiting.")] = 6,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Play scripted agents whose correct verdicts are known, and report how many were judged correctly."""
    cases, runs, left = [], [], 0
    for request in list(_requests(playbooks, family, mechanism)):
        job = uvloop.run(run_request(replace(request, image=image, concurrency=concurrency, runs_dir=runs_dir)))
        with Store(runs_dir) as store:
            cases += [case for record in store.trials(job.run.run_id) if (case := played(record))]
        runs.append(job.run.run_id)
        left += job.run.n - job.summary.n
        if left:
            break
    scores = score(cases)
    if as_json_:
        print_json({"runs": runs, "left": left, **scores.model_dump(mode="json")})
    else:
        print_scores(Console(), scores)
    if left:
        print_error(f"Stopped: {left} playbooks were not played; the others are kept in run '{runs[-1]}'.")
        raise typer.Exit(130)
    if scores.differ:
        raise typer.Exit(1)


def _requests(path: Path | None, family: str | None, mechanism: str | None) -> Iterator[RunRequest]:
    """Yield one run request for each task of the selected playbooks.

    ``path`` is a file or folder of playbooks, or None for the shipped playbooks. Raises UsageError if no playbook is
    selected.
    """
    if family is not None and family not in FAMILIES.split():
        raise UsageError(f"There is no family '{family}': use one of {', '.join(FAMILIES.split())}.")
    place = path or ROOT / SHIPPED
    wanted = {book.task for book in load_playbooks(place) if book.expect and family in (None, book.family)}
    usable = mechanism_named(mechanism).tasks if mechanism else names(TASK)
    if not wanted & set(usable):
        raise UsageError(
            "No playbook with an expectation is left: choose another --playbooks, --family or --mechanism."
        )
    stamp = f"corpus-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    for task in (each for each in usable if each in wanted):
        run_id = f"{stamp}-{task}"
        yield RunRequest(model=f"script:{place}", family=family, task=task, mechanism=mechanism, run_id=run_id)
