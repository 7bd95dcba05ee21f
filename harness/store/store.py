"""The store of runs and trials, which is one SQLite file in the runs directory.

Each trial is written in one transaction. The trial's record is stored together with summary columns
(harness/store/trial_row.py). Before a process plays a trial, it claims the trial, so that no other process plays it
too. Several processes can therefore work on the same run. If a process ends, other processes can claim its unfinished
trials.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter

from harness.errors import RESTORE, RunExistsError, StoreError, UsageError
from harness.judging.evidence import Frozen
from harness.judging.verdict import Outcome
from harness.process.identity import is_elsewhere, is_gone
from harness.resources.data import pick
from harness.sandbox.versions import Versions
from harness.store.gradings import Agreements, Grading, Labels
from harness.store.records import RunSpec, TrialRecord
from harness.store.schema import COLUMNS, MIGRATIONS, SCHEMA, check_application, read_record
from harness.store.transcript import Entry
from harness.store.trial_row import TrialRow, trial_row

FILE = "offswitch.sqlite"
WAIT_SECONDS = 30  # for another process to finish writing
WAL_BYTES = 64 << 20  # size to which SQLite truncates a longer write-ahead log after a checkpoint

_AGREEMENTS = TypeAdapter(Agreements)
_values = attrgetter(*COLUMNS)


def _is_read_only(file: Path) -> bool:
    """Return whether ``file`` or its folder is read-only for this process."""
    return not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def is_store(folder: Path) -> bool:
    """Return whether a folder contains a store."""
    return (folder / FILE).exists()


class StoredRun(Frozen):
    """A stored run without its trials.

    ``image`` contains the id and the package list of the run's image. ``request`` contains the data needed to resume
    the run; it is None if the run can't be resumed. Runs of an audit and runs stored by an older version can't be
    resumed.
    """

    spec: RunSpec
    created_at: str
    image: dict[str, Any]
    versions: Versions
    request: dict[str, Any] | None = None


class Claimed(StrEnum):
    """The result of an attempt to claim a trial, which reserves the trial for one process."""

    OURS = "ours"  # this process has claimed the trial
    HELD = "held"  # another live process has claimed the trial
    DONE = "done"  # the trial is already finished


@dataclass(frozen=True, slots=True)
class LiveEntry:
    """A message of a trial that is being played. ``seq`` counts the messages of one attempt at the trial from 0."""

    number: int
    seq: int
    entry: Entry


class UnfinishedTrial(Frozen):
    """The stored part of a trial that isn't finished. The trial has no verdict yet.

    ``running`` is False if it is certain that no process is playing the trial any more, and True otherwise.
    ``transcript`` contains the messages so far of the latest attempt at the trial.
    """

    run_id: str
    number: int
    running: bool
    transcript: tuple[Entry, ...]


class Store:
    """Stores the runs and trials of one runs directory.

    Several processes may use the same store at once. Within a process, each thread needs its own ``Store``. A ``Store``
    can be opened and closed by a thread other than the one that uses it.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open the store in ``folder``. Raises UsageError if the store can't be opened or created.

        If ``create`` is true, a missing store is created. If ``create`` is false, the store must exist, and it is
        opened read-only if this process can't write to it.
        """
        file = folder / FILE
        if not create and not (file.exists() and file.stat().st_size):
            raise UsageError(f"There are no runs in {folder}: run a trial first, or name another --runs-dir.")
        with ExitStack() as undo:
            try:
                if create or not _is_read_only(file):
                    self._open(undo, file)
                else:
                    self._open_read_only(undo, file)
            except (OSError, sqlite3.OperationalError) as error:
                raise UsageError(f"The runs directory {folder} can't be written: {error}.") from error
            except sqlite3.DatabaseError as error:
                raise UsageError(f"{file} is damaged, or no store ({error}): {RESTORE}.") from error
            undo.pop_all()

    def _open(self, undo: ExitStack, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not bound to this thread: a listener's thread may write to a store that the main thread opens and closes.
        self._db = sqlite3.connect(file, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        undo.callback(self._db.close)
        check_application(self._db, file)
        self._enable_write_ahead_log()
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        self._migrate(file)

    def _open_read_only(self, undo: ExitStack, file: Path) -> None:
        """Open a store without writing to it, for example on archive media.

        Raises UsageError if the schema has another version or SQLite's write-ahead log isn't empty, because reading the
        store would then require write access. The callback that closes the database is added to ``undo``.
        """
        log = file.with_name(f"{file.name}-wal")
        if log.exists() and log.stat().st_size:
            raise UsageError(
                f"{log} holds trials that {file.name} lacks: copy both files to a folder that can be written."
            )
        self._db = sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
        undo.callback(self._db.close)
        check_application(self._db, file)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA:
            raise UsageError(f"{file} has schema {version}, not {SCHEMA}: copy it to a folder that can be written.")

    def _enable_write_ahead_log(self) -> None:
        # If two processes switch a new file to this mode at once, SQLite refuses one of them without waiting.
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _migrate(self, file: Path) -> None:
        if self._db.execute("PRAGMA user_version").fetchone() == (SCHEMA,):
            return  # without writing anything, because the disk may be full
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise UsageError(
                    f"{file} has schema {version} and this version reads up to {SCHEMA}: use another --runs-dir."
                )
            for step in range(version + 1, SCHEMA + 1):
                for change in MIGRATIONS[step]:
                    change(self._db)
            self._db.execute(f"PRAGMA user_version={SCHEMA}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                self._db.execute("ROLLBACK")
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add_run(
        self, spec: RunSpec, image: dict[str, Any], versions: Versions, request: dict[str, Any] | None = None
    ) -> None:
        """Store a new run. Raises RunExistsError if a run with this id is already stored."""
        row = (
            spec.run_id,
            datetime.now(UTC).isoformat(timespec="seconds"),
            spec.model_dump_json(),
            json.dumps(image),
            versions.model_dump_json(),
            json.dumps(request) if request else None,
        )
        try:
            with self._writing():
                self._db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise RunExistsError(f"There is already a run '{spec.run_id}' here: choose another --run-id.") from error

    def add_trial(self, record: TrialRecord) -> None:
        """Store a finished trial, and delete the trial's claim and live transcript.

        Raises StoreError if the trial is already stored.
        """
        row = (record.run_id, *_values(trial_row(record)), record.model_dump_json())
        into = f"trials (run_id, {', '.join(COLUMNS)}, record)"
        try:
            with self._writing():
                self._db.execute(f"INSERT INTO {into} VALUES ({_placeholders(row)})", row)  # noqa: S608 - as above
                self._db.execute("DELETE FROM claims WHERE run_id = ? AND number = ?", row[:2])
                self._db.execute("DELETE FROM live_entries WHERE run_id = ? AND number = ?", row[:2])
        except sqlite3.IntegrityError as error:
            raise StoreError(f"Trial {record.number} of run '{record.run_id}' is already stored.") from error

    def add_failed_try(self, record: TrialRecord) -> None:
        """Store the record of an attempt at a trial that failed because of the lab or Docker.

        The trial remains unfinished.
        """
        facts = (record.error_kind, record.tokens, record.cost, record.model_dump_json())
        row = (record.run_id, record.number, record.tries, *facts)
        with self._writing():
            self._db.execute(f"INSERT INTO failed_tries VALUES ({_placeholders(row)})", row)  # noqa: S608 - question marks

    # ---- claims ----

    def missing(self, run_id: str, n: int) -> list[int]:
        """Return the sorted numbers of those trials from 1 to ``n`` that aren't finished."""
        rows = self._db.execute("SELECT number FROM trials WHERE run_id = ?", (run_id,))
        finished = {number for (number,) in rows}
        return [number for number in range(1, n + 1) if number not in finished]

    def claim(self, run_id: str, number: int, owner: str) -> Claimed:
        """Claim a trial for the process ``owner`` if possible, and return whether this succeeded or why it failed.

        A claim prevents other processes from playing the trial. The claim is refused if the trial is finished, or if
        another process has claimed the trial and may still be running.
        """
        which = run_id, number
        with self._writing(durable=False):
            if self._db.execute("SELECT 1 FROM trials WHERE run_id = ? AND number = ?", which).fetchone():
                return Claimed.DONE
            held = self._db.execute("SELECT owner FROM claims WHERE run_id = ? AND number = ?", which).fetchone()
            if held and held[0] != owner and not is_gone(held[0]):
                return Claimed.HELD
            self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (*which, owner))
        return Claimed.OURS

    def give_up(self, run_id: str, owner: str) -> None:
        """Delete the claims of the process ``owner`` on trials of a run, so that other processes can play them."""
        with self._writing():
            self._db.execute("DELETE FROM claims WHERE run_id = ? AND owner = ?", (run_id, owner))

    def clear_claims(self, *, also_elsewhere: bool = False) -> int:
        """Delete the claims of processes that have ended, and return the number of deleted claims.

        A claim reserves a trial for one process. If ``also_elsewhere`` is true, all claims of processes on other hosts
        are deleted as well, although the lab can't check whether those processes have ended.
        """
        owners = [owner for (owner,) in self._db.execute("SELECT DISTINCT owner FROM claims")]
        stale = [owner for owner in owners if is_gone(owner) or (also_elsewhere and is_elsewhere(owner))]
        with self._writing():
            return sum(self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,)).rowcount for owner in stale)

    # ---- live transcripts ----

    def add_live_entries(self, run_id: str, owner: str, entries: Iterable[LiveEntry]) -> None:
        """Store messages of trials that the process ``owner`` is playing. Raises StoreError if they can't be stored.

        The first message of a trial (``seq`` is 0) deletes the messages of earlier attempts at this trial. Messages of
        a trial that ``owner`` hasn't claimed are ignored, for example because the trial has finished meanwhile.

        Stored messages are kept even if this process is killed. A power failure can lose the last messages, because the
        method doesn't wait for the disk.
        """
        add = (
            "INSERT OR REPLACE INTO live_entries SELECT run_id, number, ?, ? FROM claims "
            "WHERE run_id = ? AND number = ? AND owner = ?"
        )
        with self._writing(durable=False):
            for each in entries:
                if each.seq == 0:
                    self._db.execute(
                        "DELETE FROM live_entries WHERE (run_id, number) IN (SELECT run_id, number FROM claims "
                        "WHERE run_id = ? AND number = ? AND owner = ?)",
                        (run_id, each.number, owner),
                    )
                self._db.execute(add, (each.seq, each.entry.model_dump_json(), run_id, each.number, owner))

    def unfinished(self, run_id: str) -> list[int]:
        """Return the sorted numbers of the unfinished trials that have a live transcript.

        These trials are being played, or the process that played them has ended.
        """
        rows = self._db.execute("SELECT DISTINCT number FROM live_entries WHERE run_id = ? ORDER BY 1", (run_id,))
        return [number for (number,) in rows]

    def unfinished_trial(self, run_id: str, number: int) -> UnfinishedTrial | None:
        """Return the stored part of an unfinished trial, or None if the trial has no live transcript."""
        which = run_id, number
        select = "SELECT entry FROM live_entries WHERE run_id = ? AND number = ? ORDER BY seq"
        transcript = tuple(Entry.model_validate_json(text) for (text,) in self._db.execute(select, which))
        held = self._db.execute("SELECT owner FROM claims WHERE run_id = ? AND number = ?", which).fetchone()
        if not transcript:
            return None
        running = held is not None and not is_gone(held[0])
        return UnfinishedTrial(run_id=run_id, number=number, running=running, transcript=transcript)

    # ---- control trials ----

    def control(self, key: str) -> TrialRecord | None:
        """Return the successful control trial stored under ``key``, or None if there is none.

        A control trial tests a kill switch without tampering. ``key`` is a hash of everything that affects the trial's
        result, such as the image and the kill switch.
        """
        row = self._db.execute("SELECT record FROM controls WHERE key = ?", (key,)).fetchone()
        return read_record(row[0]) if row else None

    def add_control(self, key: str, record: TrialRecord) -> None:
        """Store a successful control trial under ``key``. An existing trial under this key isn't replaced."""
        row = key, datetime.now(UTC).isoformat(timespec="seconds"), record.model_dump_json()
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO controls VALUES (?, ?, ?)", row)

    # ---- gradings ----

    def ungraded(self, run_id: str, grader: str, rubric: str) -> list[int]:
        """Return the sorted numbers of the trials that ``grader`` hasn't fully labeled under ``rubric``.

        ``rubric`` is the rubric's hash. Trials that ended in an error are omitted.
        """
        rows = self._db.execute(
            "SELECT number FROM trials t WHERE run_id = ? AND outcome != ? AND NOT EXISTS (SELECT 1 FROM gradings g "
            "WHERE g.run_id = t.run_id AND g.number = t.number AND grader = ? AND rubric = ? AND NOT failed) "
            "ORDER BY number",
            (run_id, Outcome.ERROR, grader, rubric),
        )
        return [number for (number,) in rows]

    def add_grading(self, run_id: str, grading: Grading) -> None:
        """Store a trial's grading, replacing any earlier grading of that trial by the same grader."""
        labels = grading.labels
        row = run_id, grading.number, grading.grader, grading.rubric, len(labels.failed), labels.model_dump_json()
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO gradings VALUES (?, ?, ?, ?, ?, ?)", row)

    def gradings(self, run_id: str, number: int | None = None) -> Iterator[Grading]:
        """Yield the gradings of a run, ordered by trial number and grader.

        If ``number`` is given, only the gradings of that trial are yielded.
        """
        rows = self._db.execute(
            "SELECT number, grader, rubric, labels FROM gradings WHERE run_id = ? AND number = coalesce(?, number) "
            "ORDER BY number, grader",
            (run_id, number),
        )
        for at, grader, rubric, labels in rows:
            yield Grading(number=at, grader=grader, rubric=rubric, labels=Labels.model_validate_json(labels))

    def add_agreements(self, grader: str, rubric: str, cases: str, found: Agreements) -> None:
        """Store a grader's agreement with human labels on the test cases.

        ``rubric`` is the rubric's hash, and ``cases`` is the hash of the test-case file. An earlier result for the same
        grader, rubric and cases is replaced.
        """
        row = grader, rubric, cases, _AGREEMENTS.dump_json(found).decode()
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO graders VALUES (?, ?, ?, ?)", row)

    def agreements(self) -> dict[tuple[str, str, str], Agreements]:
        """Return each grader's agreement with human labels on the test cases.

        Each key contains the grader's name, the rubric's hash and the hash of the test-case file. The results are
        ordered from oldest to newest.
        """
        rows = self._db.execute("SELECT grader, rubric, cases, agreements FROM graders ORDER BY rowid")
        return {(grader, rubric, cases): _AGREEMENTS.validate_json(found) for grader, rubric, cases, found in rows}

    @contextmanager
    def _synchronous(self, *, durable: bool) -> Iterator[None]:
        """Set whether transactions in the ``with`` block wait until their data is on disk.

        Transactions wait if ``durable`` is true. Otherwise, they are faster and a power failure may lose their data.
        """
        if durable:
            yield
            return
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[None]:
        """Run the ``with`` block as one write transaction. Raises StoreError if the store can't be written.

        If ``durable`` is false, the transaction is faster and a power failure may lose its data.
        """
        try:
            with self._synchronous(durable=durable), self._transaction():
                yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise StoreError(f"The store can't be written: {error}.") from error

    def runs(self) -> list[StoredRun]:
        """Return all runs in the store, ordered from oldest to newest."""
        return [self._run(row) for row in self._db.execute("SELECT * FROM runs ORDER BY rowid")]

    def find(self, run_id: str) -> StoredRun | None:
        """Return the run with exactly this id, or None if there is none."""
        row = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        return self._run(row) if row else None

    def run(self, run_id: str) -> StoredRun:
        """Return the run with this id. The id "last" selects the newest run.

        Raises UsageError if there is no such run. The error message suggests similar ids.
        """
        runs = {run.spec.run_id: run for run in self.runs()}
        if not runs:
            raise UsageError("There are no runs here yet: run a trial first, or name another --runs-dir.")
        if run_id == "last":
            return list(runs.values())[-1]
        return runs[pick("run", run_id, runs)]

    @staticmethod
    def _run(row: tuple[str, str, str, str, str, str | None]) -> StoredRun:
        return StoredRun(
            spec=RunSpec.model_validate_json(row[2]),
            created_at=row[1],
            image=json.loads(row[3]),
            versions=Versions.model_validate_json(row[4]),
            request=json.loads(row[5]) if row[5] else None,
        )

    def trials(self, run_id: str, numbers: Iterable[int] | None = None) -> Iterator[TrialRecord]:
        """Yield the records of a run's finished trials, ordered by trial number.

        The records are read one at a time. If ``numbers`` is given, only the trials with these numbers are yielded, in
        the given order.
        """
        if numbers is not None:
            yield from (self.trial(run_id, number) for number in numbers)
            return
        rows = self._db.execute("SELECT record FROM trials WHERE run_id = ? ORDER BY number", (run_id,))
        for (record,) in rows:
            yield read_record(record)

    def counts(self, run_id: str) -> dict[Outcome, int]:
        """Return the number of a run's finished trials for each outcome. The result is empty for an unknown run."""
        rows = self._db.execute("SELECT outcome, count(*) FROM trials WHERE run_id = ? GROUP BY outcome", (run_id,))
        return {Outcome(outcome): count for outcome, count in rows}

    def worth_showing(self, run_id: str, cap: int) -> list[int]:
        """Return the sorted numbers of at most ``cap`` trials that are useful to show.

        Each of four groups contributes up to a quarter of ``cap``: the first trials, the last trials, the first trials
        in which the agent resisted, and the first trials that ended in an error.
        """
        selections = (("1", ""), ("1", "DESC"), ("outcome = 'resisted'", ""), ("outcome = 'error'", ""))
        chosen: set[int] = set()
        for where, order in selections:
            some = f"SELECT number FROM trials WHERE run_id = ? AND {where} ORDER BY number {order} LIMIT ?"  # noqa: S608 - as above
            chosen |= {number for (number,) in self._db.execute(some, (run_id, cap // len(selections)))}
        return sorted(chosen)

    def rows(self, run_id: str) -> Iterator[TrialRow]:
        """Yield the summary columns of a run's finished trials, ordered by trial number.

        This is about 1,000 times as fast as ``trials``, because no record is parsed.
        """
        what = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE run_id = ? ORDER BY number"  # noqa: S608 - as above
        for row in self._db.execute(what, (run_id,)):
            yield _row_from_columns(row)

    def failed_tries(self, run_id: str) -> Iterator[TrialRecord]:
        """Yield the records of a run's failed attempts, ordered by trial number and attempt.

        Each of these attempts failed because of the lab or Docker.
        """
        rows = "SELECT record FROM failed_tries WHERE run_id = ? ORDER BY number, try"
        for (record,) in self._db.execute(rows, (run_id,)):
            yield read_record(record)

    def tries(self, run_id: str, number: int) -> int:
        """Return the number of stored failed attempts at a trial."""
        count = "SELECT count(*) FROM failed_tries WHERE run_id = ? AND number = ?"
        return int(self._db.execute(count, (run_id, number)).fetchone()[0])

    def spent(self, run_id: str) -> tuple[int, float]:
        """Return a run's token count and its cost in US dollars, including failed attempts.

        Unknown amounts count as 0.
        """
        tokens, cost = 0, 0.0
        for table in ("trials", "failed_tries"):
            total = f"SELECT total(tokens), total(cost) FROM {table} WHERE run_id = ?"  # noqa: S608 - as above
            row = self._db.execute(total, (run_id,)).fetchone()
            tokens, cost = tokens + int(row[0]), cost + float(row[1])
        return tokens, cost

    def record_texts(self, run_id: str) -> Iterator[str]:
        """Yield the record of each finished trial as JSON text, ordered by trial number.

        The records aren't parsed, which saves time.
        """
        for (record,) in self._db.execute("SELECT record FROM trials WHERE run_id = ? ORDER BY number", (run_id,)):
            yield record

    def trial(self, run_id: str, number: int) -> TrialRecord:
        """Return a finished trial's record. Raises UsageError if the run has no finished trial with this number."""
        row = self._db.execute("SELECT record FROM trials WHERE run_id = ? AND number = ?", (run_id, number)).fetchone()
        if row is None:
            raise UsageError(f"Run '{run_id}' has no finished trial {number}.")
        return read_record(row[0])


def _row_from_columns(row: tuple[Any, ...]) -> TrialRow:
    columns = dict(zip(COLUMNS, row, strict=True))
    for name in ("tampered", "attempt", "counted", "answered"):
        columns[name] = bool(columns[name])
    columns["agrees"] = None if columns["agrees"] is None else bool(columns["agrees"])
    return TrialRow(**columns)


def _placeholders(row: tuple[Any, ...]) -> str:
    return ", ".join("?" * len(row))
