"""The store: one SQLite file under the runs directory. A trial is written in one transaction, or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from harness.data import pick
from harness.errors import StoreError, UsageError
from harness.evidence import Frozen
from harness.record import RunSpec, TrialRecord, Versions
from harness.verdict import Outcome

SCHEMA = 2
FILE = "offswitch.sqlite"

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
_CONTROLS = "CREATE TABLE controls (key TEXT PRIMARY KEY, passed_at TEXT NOT NULL, record TEXT NOT NULL) STRICT"
# What each schema adds to the one before.
_STEPS: dict[int, tuple[str, ...]] = {1: tuple(_TABLES.split(";\n")[:-1]), 2: (_CONTROLS,)}


def is_store(folder: Path) -> bool:
    """Whether there are runs in that folder."""
    return (folder / FILE).exists()


class StoredRun(Frozen):
    """A run as it was stored. ``image`` holds the image's id and package list."""

    spec: RunSpec
    created_at: str
    image: dict[str, Any]
    versions: Versions


class Store:
    """Runs and trials on disk; safe for several processes at once."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open the store in ``folder``. Raises UsageError where it can't be read or made."""
        file = folder / FILE
        if not create and not file.exists():
            raise UsageError(f"There are no runs in {folder}: run a trial first, or name another --runs-dir.")
        with ExitStack() as undo:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(file, timeout=30, isolation_level=None)
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._prepare(file)
            except (OSError, sqlite3.Error) as error:
                raise UsageError(f"The runs directory {folder} can't be written: {error}.") from error
            undo.pop_all()

    def _prepare(self, file: Path) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise UsageError(
                    f"{file} has schema {version} and this version reads up to {SCHEMA}: use another --runs-dir."
                )
            for step in range(version + 1, SCHEMA + 1):
                for statement in _STEPS[step]:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add_run(self, spec: RunSpec, image: dict[str, Any], versions: Versions) -> None:
        """Store a new run. Raises UsageError where one of that id exists."""
        row = (
            spec.run_id,
            datetime.now(UTC).isoformat(timespec="seconds"),
            spec.model_dump_json(),
            json.dumps(image),
            versions.model_dump_json(),
        )
        try:
            with self._writing():
                self._db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise UsageError(f"There is already a run '{spec.run_id}' here: choose another --run-id.") from error

    def add_trial(self, record: TrialRecord) -> None:
        """Store a finished trial; when this returns it is on disk."""
        row = (
            record.run_id,
            record.number,
            record.verdict.outcome.value,
            int(bool(record.verdict.tampering)),
            record.tokens,
            record.seconds,
            record.model_dump_json(),
        )
        try:
            with self._writing():
                self._db.execute("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise StoreError(f"Trial {record.number} of run '{record.run_id}' is already stored.") from error

    def control(self, key: str) -> TrialRecord | None:
        """The control trial that was passed for this image and mechanism, or None."""
        row = self._db.execute("SELECT record FROM controls WHERE key = ?", (key,)).fetchone()
        return _read_record(row[0]) if row else None

    def add_control(self, key: str, record: TrialRecord) -> None:
        """Store a control trial that was passed; one that another process stored meanwhile is as good."""
        row = key, datetime.now(UTC).isoformat(timespec="seconds"), record.model_dump_json()
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO controls VALUES (?, ?, ?)", row)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise StoreError(f"The store can't be written: {error}.") from error

    def runs(self) -> list[StoredRun]:
        """Every run, oldest first."""
        return [self._run(row) for row in self._db.execute("SELECT * FROM runs ORDER BY created_at, rowid")]

    def run(self, run_id: str) -> StoredRun:
        """One run; "last" is the newest. Raises UsageError naming the nearest."""
        runs = {run.spec.run_id: run for run in self.runs()}
        if not runs:
            raise UsageError("There are no runs here yet: run a trial first, or name another --runs-dir.")
        if run_id == "last":
            return list(runs.values())[-1]
        return runs[pick("run", run_id, runs)]

    @staticmethod
    def _run(row: tuple[str, str, str, str, str]) -> StoredRun:
        return StoredRun(
            spec=RunSpec.model_validate_json(row[2]),
            created_at=row[1],
            image=json.loads(row[3]),
            versions=Versions.model_validate_json(row[4]),
        )

    def counts(self, run_id: str) -> dict[Outcome, int]:
        """How many finished trials of a run ended in each outcome; of a run that isn't there, none."""
        rows = self._db.execute("SELECT outcome, count(*) FROM trials WHERE run_id = ? GROUP BY outcome", (run_id,))
        return {Outcome(outcome): count for outcome, count in rows}

    def trials(self, run_id: str) -> Iterator[TrialRecord]:
        """The trials of a run, in order, one at a time."""
        rows = self._db.execute("SELECT record FROM trials WHERE run_id = ? ORDER BY number", (run_id,))
        for (record,) in rows:
            yield _read_record(record)

    def trial(self, run_id: str, number: int) -> TrialRecord:
        """One trial. Raises UsageError where there is none of that number."""
        row = self._db.execute("SELECT record FROM trials WHERE run_id = ? AND number = ?", (run_id, number)).fetchone()
        if row is None:
            raise UsageError(f"Run '{run_id}' has no finished trial {number}.")
        return _read_record(row[0])


def _read_record(text: str) -> TrialRecord:
    try:
        return TrialRecord.model_validate_json(text)
    except ValidationError as error:
        raise StoreError("A stored trial can't be read: it is of another version, or broken on disk.") from error
