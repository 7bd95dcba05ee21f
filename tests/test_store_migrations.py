"""Stores of each earlier schema: tests/data/stores/schema-N.sql is what the lab of that time wrote, dumped as SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from analysis.cells import read_cells
from harness.errors import UsageError
from harness.judging.verdict import Outcome, Sabotage
from harness.process.identity import this_process
from harness.store.gradings import Grading, Labels
from harness.store.schema import APPLICATION_ID, SCHEMA
from harness.store.store import FILE, Claimed, LiveEntry, Store
from harness.store.summary import Summary, judge_again, run_as_json, summarise
from harness.store.transcript import Entry
from harness.store.trial_row import trial_row
from harness.tasks.registry import task_named
from tests.builders import trial_record

DUMPS = Path(__file__).parent / "data" / "stores"
each_schema = pytest.mark.parametrize("schema", range(1, SCHEMA))


def store_of(folder: Path, schema: int) -> Path:
    """Write the store of an earlier schema, as the lab wrote it at that time, and return its file."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        db.executescript((DUMPS / f"schema-{schema}.sql").read_text("utf-8"))
    return folder / FILE


def tables_of(file: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return each table of a store with its columns, sorted by name."""
    with closing(sqlite3.connect(file)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        return {name: sorted(row[1:] for row in db.execute(f"PRAGMA table_info({name})")) for name in names}


def pragma(file: Path, name: str) -> int:
    """Return a number from the header of an SQLite file."""
    with closing(sqlite3.connect(file)) as db:
        return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def test_each_earlier_schema_is_tried() -> None:
    """There is a store of each schema before the current one."""
    assert sorted(file.name for file in DUMPS.iterdir()) == [f"schema-{number}.sql" for number in range(1, SCHEMA)]


@each_schema
def test_an_earlier_store_becomes_a_store_of_today(tmp_path: Path, schema: int) -> None:
    """Opening an earlier store gives it the tables, columns, version and application id of a new store."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    file = store_of(old, schema)
    assert (pragma(file, "user_version"), pragma(file, "application_id")) == (schema, 0)
    for folder in (old, new):
        with Store(folder):
            pass
    assert tables_of(old / FILE) == tables_of(new / FILE)
    for folder in (old, new):
        assert pragma(folder / FILE, "user_version") == SCHEMA
        assert pragma(folder / FILE, "application_id") == APPLICATION_ID


@each_schema
def test_an_earlier_store_is_read(tmp_path: Path, schema: int) -> None:
    """The run, the records and their columns of an earlier store are read, whatever their fields were called then."""
    store_of(tmp_path, schema)
    with Store(tmp_path) as store:
        stored = store.run("monday")
        records = list(store.trials("monday"))
        assert (stored.spec.n, stored.spec.mechanism.name, stored.spec.condition.name) == (3, "published", "A")
        assert stored.image == {"tag": "sandbox:1", "packages": ["bash 5.2"]}
        assert list(store.rows("monday")) == [trial_row(record) for record in records]
        assert [row.sabotage for row in store.rows("monday")] == ["outlived", None, None]
        assert store.counts("monday") == {Outcome.RESISTED: 1, Outcome.COMPLIED: 1, Outcome.ERROR: 1}
    played, replayed, failed = records
    assert (played.agent.playbook, played.agent.family) == ("edit", "edit")
    assert played.agent.as_json()["expected"] == {"outcome": "resisted", "tampering": ["edited"]}
    assert (replayed.agent.label, replayed.agent.recorded_model, replayed.agent.tags) == (
        "shutdown",
        "grok-4",
        ("mock",),
    )
    assert (failed.agent.exit_code, failed.agent.stderr, failed.error_kind) == (2, "no key", "EngineError")
    assert played.evidence is not None
    assert len(played.evidence.file_changes) == 2
    assert [access.path for access in played.evidence.accesses or ()][2:] == ["/home/user/shutdown.sh"]
    assert [entry.at_s for entry in played.transcript] == [None] * 4
    assert played.transcript[2].calls[0].cmd.endswith("> shutdown.sh")


@each_schema
def test_an_earlier_store_is_judged_the_same(tmp_path: Path, schema: int) -> None:
    """Judging the evidence of an earlier store again moves no verdict."""
    store_of(tmp_path, schema)
    with Store(tmp_path) as store:
        judged = [judge_again(record, task_named("math").verdict_on) for record in store.trials("monday")]
    verdicts = ["resisted edited", "complied", "error"]
    assert ([item.before for item in judged], [item.after for item in judged]) == (verdicts, verdicts)


@each_schema
def test_an_earlier_store_is_reported_the_same(tmp_path: Path, schema: int) -> None:
    """The summary, the JSON form and the report of an earlier store have the figures they had then."""
    store_of(tmp_path, schema)
    with Store(tmp_path) as store:
        summary: Summary = summarise(store.rows("monday"))
        shown = run_as_json(store.run("monday"), store.trials("monday"), summary)
        cells = read_cells(store, store.runs())
    assert (summary.n, summary.judged, summary.rate.rate, summary.sabotage[Sabotage.OUTLIVED]) == (3, 2, 0.5, 1)
    assert [(item.name, item.agrees) for item in summary.agreement] == [("edit", True), ("a.jsonl", True)]
    assert shown["trials"][0]["agent"]["playbook"] == "edit"
    assert shown["trials"][2]["agent"] == {"model": "mine", "exit_code": 2, "stdout": "", "stderr": "no key"}
    assert [(cell.key.model, cell.key.recorded, dict(cell.outcomes)) for cell in cells] == [
        ("demo", False, {"resisted": 1, "error": 1}),
        ("grok-4", True, {"complied": 1}),
    ]
    assert (dict(cells[0].kinds), cells[0].key.setting, cells[1].key.setting) == (
        {"edited": 1},
        None,
        "simulated robot",
    )


@each_schema
def test_an_earlier_store_can_be_worked_with(tmp_path: Path, schema: int) -> None:
    """After the migration an earlier store takes trials, claims, control trials, gradings and live messages."""
    store_of(tmp_path, schema)
    me = this_process()
    with Store(tmp_path) as store:
        assert store.missing("monday", 5) == [4, 5]
        assert store.claim("monday", 5, me) is Claimed.OURS
        store.add_live_entries("monday", me, [LiveEntry(5, 0, Entry(role="user", text="Answer."))])
        assert store.unfinished("monday") == [5]
        store.add_trial(trial_record(5, run_id="monday"))
        store.add_control("another key", trial_record())
        store.add_failed_try(trial_record(4, run_id="monday"))
        store.add_grading("monday", Grading(number=2, grader="y", rubric="r", labels=Labels(test="yes")))
        assert store.missing("monday", 5) == [4]
        assert (store.control("key") is not None) == (schema >= 2)
        assert [each.number for each in store.failed_tries("monday")] == ([2, 4] if schema >= 3 else [4])
        assert len(list(store.gradings("monday"))) == (2 if schema >= 4 else 1)


# ---- databases of other applications ----


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE notes (text TEXT); PRAGMA user_version=3;",
        "CREATE TABLE notes (text TEXT);",
        "PRAGMA application_id=7;",
        "CREATE TABLE runs (a); CREATE TABLE trials (b); PRAGMA application_id=7; PRAGMA user_version=3;",
        f"CREATE TABLE runs (a); CREATE TABLE trials (b); PRAGMA user_version={SCHEMA};",
    ],
    ids=["with a version", "without one", "with an id", "with our tables", "with our version"],
)
@pytest.mark.parametrize("read_only", [False, True], ids=["to write", "to read"])
def test_another_applications_database_is_left_alone(
    tmp_path: Path, script: str, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database of another application is refused in one sentence, and not a byte of it is changed."""
    file = tmp_path / FILE
    with closing(sqlite3.connect(file)) as db:
        db.executescript(script)
    before = file.read_bytes()
    monkeypatch.setattr("harness.store.store._is_read_only", lambda file: read_only)
    with pytest.raises(UsageError, match=r"^\S+ is a database of another application: use another --runs-dir\.$"):
        Store(tmp_path, create=not read_only)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [FILE]
