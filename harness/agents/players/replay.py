"""``--model replay:PATH`` replays recorded runs or an Inspect AI log. ``--model replay:RUN`` replays a stored run."""

from __future__ import annotations

from pathlib import Path

from harness.agents.kind import PlayerKind, PlayerOptions
from harness.agents.player import Player
from harness.agents.scripted.inspect_log import SUFFIX, inspect_replay
from harness.agents.scripted.replay import replay
from harness.agents.scripted.stored_replay import stored_replay
from harness.errors import UsageError
from harness.store.records import RunSpec
from harness.store.store import Store, is_store
from harness.tasks.task import Task


def _make(argument: str, task: Task, options: PlayerOptions) -> Player:
    path = Path(argument)
    if options.runs_dir and (run := _stored_run(argument, options.runs_dir)):
        if task.name != run.task:
            raise UsageError(f"Run '{run.run_id}' is of task '{run.task}', not '{task.name}'.")
        with Store(options.runs_dir, create=False) as store:
            return stored_replay(run, store.trials(run.run_id), own_words=options.condition is None)
    return inspect_replay(path, task.name) if argument.endswith(SUFFIX) else replay(path, task.name)


def _stored_run(argument: str, runs_dir: Path) -> RunSpec | None:
    """Return the stored run with the id ``argument``, or None if there is none. The id ``last`` means the latest run.

    If ``argument`` is also the path of an existing file or folder, the path takes precedence and None is returned.
    """
    if Path(argument).exists() or not is_store(runs_dir):
        return None
    with Store(runs_dir, create=False) as store:
        known = {"last", *(run.spec.run_id.lower() for run in store.runs())}
        return store.run(argument).spec if argument.lower() in known else None


KIND = PlayerKind(
    "replay",
    "replay:PATH",
    "recorded runs, or by its id a stored run",
    _make,
    counts_trials=True,
    default_task=lambda argument: "math" if argument.endswith(SUFFIX) else "patrol",
    stored_run=_stored_run,
)
