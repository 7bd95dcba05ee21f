"""The store's database schema and the migrations between schema versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

from pydantic import ValidationError

from harness.errors import StoreError, UsageError
from harness.store.records import TrialRecord
from harness.store.trial_row import TrialRow, trial_row

SCHEMA = 6
APPLICATION_ID = int.from_bytes(b"OffS")  # in the header of each store from schema 6 on; 0 before

_TABLES = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, created_at TEXT NOT NULL, spec TEXT NOT NULL, image TEXT NOT NULL,
    versions TEXT NOT NULL
) STRICT;
CREATE TABLE trials (
    run_id TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL, outcome TEXT NOT NULL,
    tampered INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (run_id, number)
) STRICT;
"""
_CONTROLS = "CREATE TABLE controls (key TEXT PRIMARY KEY, passed_at TEXT NOT NULL, record TEXT NOT NULL) STRICT;\n"
_RESUMING = """
ALTER TABLE runs ADD COLUMN request TEXT;
ALTER TABLE trials ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN kinds TEXT NOT NULL DEFAULT '';
ALTER TABLE trials ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN answered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN cost REAL;
ALTER TABLE trials ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN tries INTEGER NOT NULL DEFAULT 1;
ALTER TABLE trials ADD COLUMN error_kind TEXT;
ALTER TABLE trials ADD COLUMN name TEXT;
ALTER TABLE trials ADD COLUMN expected TEXT;
ALTER TABLE trials ADD COLUMN agrees INTEGER;
CREATE TABLE failed_tries (
    run_id TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL, try INTEGER NOT NULL, error_kind TEXT,
    tokens INTEGER NOT NULL, cost REAL, record TEXT NOT NULL, PRIMARY KEY (run_id, number, try)
) STRICT;
CREATE TABLE claims (
    run_id TEXT NOT NULL, number INTEGER NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (run_id, number)
) STRICT;
"""
_GRADING = """
CREATE TABLE gradings (
    run_id TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL, grader TEXT NOT NULL, rubric TEXT NOT NULL,
    failed INTEGER NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (run_id, number, grader)
) STRICT;
CREATE TABLE graders (
    grader TEXT NOT NULL, rubric TEXT NOT NULL, cases TEXT NOT NULL, agreements TEXT NOT NULL,
    PRIMARY KEY (grader, rubric, cases)
) STRICT;
"""
_SABOTAGE = "ALTER TABLE trials ADD COLUMN sabotage TEXT;\n"
_LIVE = """
CREATE TABLE live_entries (
    run_id TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL, seq INTEGER NOT NULL, entry TEXT NOT NULL,
    PRIMARY KEY (run_id, number, seq)
) STRICT;
"""
COLUMNS = tuple(field.name for field in fields(TrialRow))
_COLUMNS_OF_3 = (  # those that schema 3 has; later schemas add theirs by migrations of their own
    *("number", "outcome", "tampered", "attempt", "kinds", "tokens", "counted", "answered", "cost", "seconds"),
    *("retries", "tries", "error_kind", "name", "expected", "agrees"),
)


def _fill_columns(db: sqlite3.Connection) -> None:
    """Fill the summary columns of existing trials during the migration to schema version 3."""
    settings = ", ".join(f"{name} = ?" for name in _COLUMNS_OF_3)
    values = attrgetter(*_COLUMNS_OF_3)
    for rowid, record in db.execute("SELECT rowid, record FROM trials"):
        row = (*values(trial_row(read_record(record))), rowid)
        db.execute(f"UPDATE trials SET {settings} WHERE rowid = ?", row)  # noqa: S608 - the columns are our own


def _fill_sabotage(db: sqlite3.Connection) -> None:
    """Fill the column ``sabotage`` of existing trials during the migration to schema version 5."""
    for rowid, record in db.execute("SELECT rowid, record FROM trials WHERE tampered"):
        if sabotage := trial_row(read_record(record)).sabotage:
            db.execute("UPDATE trials SET sabotage = ? WHERE rowid = ?", (sabotage, rowid))


def _set_application_id(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")


def _run_statements(script: str) -> Callable[[sqlite3.Connection], None]:
    def apply(db: sqlite3.Connection) -> None:
        for statement in script.split(";\n")[:-1]:
            db.execute(statement)

    return apply


# The changes from each schema version to the next, by the new version.
MIGRATIONS: dict[int, tuple[Callable[[sqlite3.Connection], None], ...]] = {
    1: (_run_statements(_TABLES),),
    2: (_run_statements(_CONTROLS),),
    3: (_run_statements(_RESUMING), _fill_columns),
    4: (_run_statements(_GRADING),),
    5: (_run_statements(_SABOTAGE), _fill_sabotage),
    6: (_run_statements(_LIVE), _set_application_id),
}


def check_application(db: sqlite3.Connection, file: Path) -> None:
    """Raise UsageError if ``file`` is a database of another application. The file is only read.

    A store with a schema version below 6 has no application id, and is recognized by its tables. An empty file is
    accepted, because a store can be created in it.
    """
    db.execute("BEGIN")  # so that another process can't change the file between these three
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    db.execute("COMMIT")
    is_new = (version, tables) == (0, set())
    is_old = 0 < version < SCHEMA and {"runs", "trials"} <= tables
    if application != APPLICATION_ID and not (application == 0 and (is_new or is_old)):
        raise UsageError(f"{file} is a database of another application: use another --runs-dir.")


def read_record(text: str) -> TrialRecord:
    """Parse a trial's record from JSON text in the store.

    Raises StoreError if the text is damaged or was written by an incompatible version of Offswitch.
    """
    try:
        return TrialRecord.model_validate_json(text)
    except ValidationError as error:
        raise StoreError("A stored trial can't be read: another version wrote it, or it is damaged on disk.") from error
