"""The commands ``show``, ``list`` and ``judge``, which read stored runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import AsJson, RunsDir, print_json, print_stored
from harness.errors import UsageError
from harness.store.records import RunSpec
from harness.store.store import Store
from harness.store.summary import as_json, judge_again, run_as_json, summarise
from harness.tasks.registry import TASK, name_of, names, task_named
from harness.tasks.task import Task
from harness.terminal.runs import print_runs
from harness.terminal.text import print_note
from harness.terminal.timeline import print_trial, print_unfinished_trial


def show(
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    trial_number: Annotated[int | None, typer.Argument(metavar="[TRIAL]", help="A trial's number.")] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Show a run, or the timeline of one of its trials.

    Of a trial that isn't finished, what was said so far is shown.
    """
    with Store(runs_dir, create=False) as store:
        stored = store.run(run)
        run_id = stored.spec.run_id
        if trial_number is not None:
            if unfinished := store.unfinished_trial(run_id, trial_number):
                if as_json_:
                    print_json({"unfinished": unfinished.model_dump(mode="json")})
                else:
                    print_unfinished_trial(Console(), unfinished)
                return
            record = store.trial(run_id, trial_number)
            if as_json_:
                print_json(record.model_dump_json())
            else:
                print_trial(Console(), record, store.gradings(run_id, trial_number))
            return
        summary = summarise(store.rows(run_id))
        if as_json_:
            print_json(run_as_json(stored, store.trials(run_id), summary, store.failed_tries(run_id)))
        else:
            print_stored(store, stored.spec, summary)


def list_runs(runs_dir: RunsDir = Path("runs"), as_json_: AsJson = False) -> None:
    """List the stored runs."""
    with Store(runs_dir, create=False) as store:
        runs = [(stored, summarise(store.rows(stored.spec.run_id))) for stored in store.runs()]
    if as_json_:
        print_json([as_json(stored.spec, summary) for stored, summary in runs])
    else:
        print_runs(Console(), runs)


def judge(
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    task: Annotated[
        Path | None, typer.Option(help="The folder of the run's task, if it is your own and in no plugin folder.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Judge the stored evidence of a run again with its task's current rules, and print the changed verdicts."""
    with Store(runs_dir, create=False) as store:
        spec = store.run(run).spec
        rules, n, moved = _task_of(spec, task), 0, []
        for record in store.trials(spec.run_id):
            n, item = n + 1, judge_again(record, rules.verdict_on)
            moved += [item] if item.before != item.after else []
    if as_json_:
        print_json({"trials": n, "moved": [item.model_dump() for item in moved]})
        return
    for item in moved:
        print_note(f"trial {item.number}: {item.before} -> {item.after}")
    Console().print(f"{n} trials judged again, {len(moved)} verdicts moved")


def _task_of(run: RunSpec, folder: Path | None) -> Task:
    """Return the task of a stored run.

    ``folder`` is the folder of the user's own task, or None if the task is found by its name alone. Raises UsageError
    if the task isn't found, or if it is a broken plugin.
    """
    if folder is not None:
        name_of(TASK, str(folder.absolute()))
    if run.task not in names(TASK):
        raise UsageError(
            f"Run '{run.run_id}' keeps its stored verdicts, because its task '{run.task}' isn't known here: name the "
            "task's folder with --task, or its plugin folder with --plugins."
        )
    return task_named(run.task)
