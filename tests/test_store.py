from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from harness.errors import StoreError, UsageError
from harness.judging.verdict import Outcome, TamperingKind
from harness.process.identity import this_process
from harness.store.gradings import Agreements, CaseAgreement, Grading, Labels
from harness.store.schema import SCHEMA
from harness.store.store import FILE, Claimed, Store
from harness.store.transcript import Entry
from tests.builders import a_verdict, outlived, run_spec, shell, trial_record, versions

IMAGE = {"tag": "sandbox:1", "packages": ["bash 5.2"]}


def filled(folder: Path, *run_ids: str, trials: int = 0) -> Store:
    """Create a store with these runs, and with finished trials of the first run."""
    store = Store(folder)
    for run_id in run_ids:
        store.add_run(run_spec(run_id), IMAGE, versions())
    for number in range(1, trials + 1):
        store.add_trial(trial_record(number, run_id=run_ids[0]))
    return store


# ---- what is stored ----


def test_a_run_comes_back(tmp_path: Path) -> None:
    """A stored run is returned with its spec, image, versions and creation time."""
    with filled(tmp_path, "one") as store:
        stored = store.run("one")
    assert (stored.spec, stored.image, stored.versions) == (run_spec("one"), IMAGE, versions())
    assert stored.created_at.startswith("20")


def test_a_trial_comes_back(tmp_path: Path) -> None:
    """A stored trial is returned unchanged, even if its text contains control characters."""
    hostile = "\x1b[31m[red] \u202e \0 ä 🐕"
    record = trial_record(
        evidence=outlived(),
        verdict=a_verdict(Outcome.RESISTED, TamperingKind.EDITED),
        transcript=(Entry(role="assistant", text=hostile, calls=(shell(hostile),), raw={"content": [hostile]}),),
        agent={"playbook": "edit", "expected": None},
    )
    with filled(tmp_path, "a-run") as store:
        store.add_trial(record)
        assert store.trial("a-run", 1) == record
        assert list(store.trials("a-run")) == [record]


def test_a_store_outlives_its_process(tmp_path: Path) -> None:
    """A store opened again, to read or to write, contains what was stored before."""
    with filled(tmp_path, "one", trials=1):
        pass
    for create in (True, False):
        with Store(tmp_path, create=create) as store:
            assert store.trial("one", 1).number == 1


def test_trials_come_in_order(tmp_path: Path) -> None:
    """The trials of a run are returned by number, whatever the order they finished in, without those of other runs."""
    with filled(tmp_path, "one", "two") as store:
        for number in (10, 2, 1):
            store.add_trial(trial_record(number, run_id="one"))
        store.add_trial(trial_record(5, run_id="two"))
        assert [record.number for record in store.trials("one")] == [1, 2, 10]


def test_runs_come_oldest_first(tmp_path: Path) -> None:
    """Runs are listed in the order they were created, and "last" selects the newest."""
    with filled(tmp_path, "b", "c", "a") as store:
        assert [run.spec.run_id for run in store.runs()] == ["b", "c", "a"]
        assert store.run("last").spec.run_id == "a"


def test_the_file_can_be_asked_with_sql(tmp_path: Path) -> None:
    """Outcome, tampering, tokens and seconds of a trial can be queried as SQL columns."""
    with filled(tmp_path, "a-run") as store:
        store.add_trial(trial_record(3, verdict=a_verdict(Outcome.RESISTED, TamperingKind.MOVED), tokens=9))
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        rows = db.execute("SELECT run_id, number, outcome, tampered, tokens, seconds FROM trials").fetchall()
    assert rows == [("a-run", 3, "resisted", 1, 9, 1.5)]


def test_a_store_that_nobody_can_write_to_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only store can be read but not changed; an unfinished write-ahead log raises an error with advice."""
    with filled(tmp_path, "one", trials=2):
        pass
    monkeypatch.setattr("harness.store.store._is_read_only", lambda file: True)
    with Store(tmp_path, create=False) as store:
        assert [record.number for record in store.trials("one")] == [1, 2]
        with pytest.raises(StoreError, match="can't be written"):
            store.claim("one", 3, "me")
    (tmp_path / f"{FILE}-wal").write_bytes(b"more")
    with pytest.raises(UsageError, match="copy both"):
        Store(tmp_path, create=False)


@pytest.mark.parametrize(("content", "says"), [(b"", "There are no runs"), (b"no store at all" * 99, "is damaged")])
def test_what_is_no_store_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    """Opening an empty or invalid file as a store raises an error that suggests --runs-dir."""
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UsageError, match=f"{says}.*--runs-dir"):
        Store(tmp_path, create=False)


# ---- errors ----


def test_a_run_id_is_taken_once(tmp_path: Path) -> None:
    """Adding a run with an existing id raises an error and leaves the first run unchanged."""
    with filled(tmp_path, "one") as store:
        with pytest.raises(UsageError, match="already a run 'one' here: choose another --run-id"):
            store.add_run(run_spec("one", n=7), IMAGE, versions())
        assert store.run("one").spec.n == 1


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    """An unknown run id raises an error that suggests the nearest id."""
    with filled(tmp_path, "monday-1", "tuesday") as store, pytest.raises(UsageError, match=r"did you mean monday-1\?"):
        store.run("monday")


def test_an_unknown_trial_is_refused(tmp_path: Path) -> None:
    """Reading a trial that isn't finished raises an error that names its number."""
    with filled(tmp_path, "one", trials=1) as store, pytest.raises(UsageError, match="'one' has no finished trial 2"):
        store.trial("one", 2)


def test_looking_makes_no_store(tmp_path: Path) -> None:
    """Opening a folder without runs for reading raises an error and creates no file."""
    with pytest.raises(UsageError, match="no runs in"):
        Store(tmp_path / "runs", create=False)
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_refused(tmp_path: Path) -> None:
    """A store with a newer schema raises an error that gives both schema versions."""
    with filled(tmp_path, "one"):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(UsageError, match=f"has schema {SCHEMA + 1} and this version reads up to {SCHEMA}"):
        Store(tmp_path)


# ---- gradings ----


def a_grading(number: int = 1, **other: Any) -> Grading:
    """Return a grading of one trial."""
    return Grading(number=number, **{"grader": "x/reader", "rubric": "r1", "labels": Labels(test="no"), **other})


def test_a_grader_reads_each_trial_once(tmp_path: Path) -> None:
    """The ungraded trials are those without error that this grader hasn't fully graded with this rubric."""
    with filled(tmp_path, "one", trials=3) as store:
        store.add_trial(trial_record(4, run_id="one", evidence=None, error="lost"))
        store.add_grading("one", a_grading(1))
        store.add_grading("one", a_grading(2, labels=Labels(failed=("test",))))
        assert store.ungraded("one", "x/reader", "r1") == [2, 3]
        assert store.ungraded("one", "x/reader", "r2") == [1, 2, 3]
        assert store.ungraded("one", "another", "r1") == [1, 2, 3]
        again = a_grading(1, rubric="r2", labels=Labels(test="yes"))
        store.add_grading("one", again)
        store.add_grading("one", other := a_grading(1, grader="another"))
        assert list(store.gradings("one", 1)) == [other, again]


def test_a_graders_agreement_comes_back(tmp_path: Path) -> None:
    """A grader's agreement is stored per grader, rubric and set of cases, and a newer one replaces it."""
    found: Agreements = {"test": CaseAgreement(n=9, agreeing=8, failed=1, kappa=0.83)}
    with filled(tmp_path, "one") as store:
        store.add_agreements("x/reader", "r1", "c1", {})
        store.add_agreements("x/reader", "r1", "c1", found)
        assert store.agreements() == {("x/reader", "r1", "c1"): found}


# ---- resuming ----

ELSEWHERE = "another-host:1:1"


def gone() -> str:
    """Return the identity of a process on this host that has ended: this one's pid with another start time."""
    host, pid, _ = this_process().rsplit(":", 2)
    return f"{host}:{pid}:0"


def test_what_is_missing_is_what_is_not_finished(tmp_path: Path) -> None:
    """The missing trials of a run are all numbers up to n that aren't stored, in order."""
    with filled(tmp_path, "one") as store:
        for number in (2, 4):
            store.add_trial(trial_record(number, run_id="one"))
        assert store.missing("one", 6) == [1, 3, 5, 6]


def test_a_trial_is_claimed_once(tmp_path: Path) -> None:
    """Only one process can claim a trial until that process gives it up, and no one can claim a finished trial."""
    with filled(tmp_path, "one") as store, Store(tmp_path) as other:
        assert store.claim("one", 1, this_process()) is Claimed.OURS
        assert other.claim("one", 1, ELSEWHERE) is Claimed.HELD
        store.give_up("one", this_process())
        assert other.claim("one", 1, ELSEWHERE) is Claimed.OURS
        other.add_trial(trial_record(1, run_id="one"))
        assert store.claim("one", 1, this_process()) is Claimed.DONE


def test_the_claims_of_the_dead_are_anybodys(tmp_path: Path) -> None:
    """A claim of an ended process can be taken over; a claim of another host stays until it is cleared."""
    with filled(tmp_path, "one") as store:
        assert store.claim("one", 1, gone()) is Claimed.OURS
        assert store.claim("one", 2, ELSEWHERE) is Claimed.OURS
        assert store.claim("one", 1, this_process()) is Claimed.OURS
        assert store.claim("one", 2, this_process()) is Claimed.HELD
        store.claim("one", 3, gone())
        assert store.clear_claims() == 1
        assert store.clear_claims(also_elsewhere=True) == 1
        assert store.claim("one", 2, this_process()) is Claimed.OURS


def test_claims_are_each_got_by_one_of_many(tmp_path: Path) -> None:
    """If many processes claim the same trials at once, each trial goes to exactly one of them."""
    with filled(tmp_path, "one"):
        pass
    together = Barrier(6)

    def take(number: int) -> list[int]:
        with Store(tmp_path) as store:
            together.wait(10)
            owner = f"host-{number}:1:1"
            return [each for each in range(1, 31) if store.claim("one", each, owner) is Claimed.OURS]

    with ThreadPoolExecutor(6) as pool:
        taken = [each for some in pool.map(take, range(6)) for each in some]
    assert sorted(taken) == list(range(1, 31))


def test_failed_tries_are_kept_and_counted(tmp_path: Path) -> None:
    """A failed try is stored and counted apart from trials, and its tokens and cost are included in the total."""
    failed = trial_record(1, run_id="one", evidence=None, error="no engine", tokens=5, cost=0.25, lab_failed=True)
    with filled(tmp_path, "one") as store:
        store.add_failed_try(failed)
        assert (store.tries("one", 1), store.tries("one", 2)) == (1, 0)
        assert store.missing("one", 1) == [1]
        store.add_trial(trial_record(1, run_id="one", tries=2, tokens=7, cost=0.5))
        assert list(store.failed_tries("one")) == [failed]
        assert store.spent("one") == (12, 0.75)
        assert [each.tries for each in store.rows("one")] == [2]


def test_a_full_disk_loses_nothing_that_was_said(tmp_path: Path) -> None:
    """If the disk is full, storing a trial raises StoreError, earlier trials stay, and storing works again later."""
    with filled(tmp_path, "one", trials=1) as store:
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages}")
        huge = trial_record(2, run_id="one", transcript=(Entry(role="assistant", text="x" * 1_000_000),))
        with pytest.raises(StoreError, match="can't be written: database or disk is full"):
            store.add_trial(huge)
        assert [each.number for each in store.trials("one")] == [1]
        store._db.execute("PRAGMA max_page_count=1000000")
        store.add_trial(huge)
        assert store.trial("one", 2) == huge


def test_the_trials_worth_showing_are_few(tmp_path: Path) -> None:
    """Of a large run, the first and last trials and some that resisted are selected for display."""
    with filled(tmp_path, "one") as store:
        for number in range(1, 41):
            outcome = Outcome.RESISTED if number in (20, 21) else Outcome.COMPLIED
            store.add_trial(trial_record(number, run_id="one", verdict=a_verdict(outcome)))
        assert store.worth_showing("one", 8) == [1, 2, 20, 21, 39, 40]
        assert [each.number for each in store.trials("one", [2, 39])] == [2, 39]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """If the folder can't be created because a file is there, an error is raised and the file is unchanged."""
    (tmp_path / "runs").write_text("mine")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(UsageError, match="can't be written"):
            Store(folder)
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """Opening a file that isn't a database raises an error."""
    (tmp_path / FILE).write_text("this is no database, and long enough to be seen as none" * 40)
    with pytest.raises(UsageError, match="not a database"):
        Store(tmp_path)


# ---- concurrent access and interrupted writes ----

HALF = (
    "INSERT INTO trials (run_id, number, outcome, tampered, tokens, seconds, record) "
    "VALUES ('one', 1, 'error', 0, 0, 0.0, '{')"
)


def write_half(store: Store) -> None:
    """Start to write a trial and raise KeyboardInterrupt before the transaction is committed."""
    with store._transaction():
        store._db.execute(HALF)
        raise KeyboardInterrupt


def test_half_a_trial_is_none(tmp_path: Path) -> None:
    """If writing a trial is interrupted, nothing of it is stored, and the trial can be written again."""
    with filled(tmp_path, "one") as store:
        with pytest.raises(KeyboardInterrupt):
            write_half(store)
        assert list(store.trials("one")) == []
        store.add_trial(trial_record(1, run_id="one"))
        assert store.trial("one", 1).number == 1


def test_a_process_that_dies_writing_leaves_nothing(tmp_path: Path) -> None:
    """If a process dies during a transaction, nothing of that transaction is stored."""
    with filled(tmp_path, "one"):
        pass
    dying = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    dying.execute("BEGIN IMMEDIATE")
    dying.execute(HALF)
    dying.close()
    with Store(tmp_path) as store:
        assert list(store.trials("one")) == []


def test_two_stores_share_a_file(tmp_path: Path) -> None:
    """Two open stores of the same folder see each other's runs and trials at once."""
    with filled(tmp_path, "one") as first, Store(tmp_path) as second:
        second.add_run(run_spec("two"), IMAGE, versions())
        first.add_trial(trial_record(1, run_id="two"))
        assert [run.spec.run_id for run in first.runs()] == ["one", "two"]
        assert second.trial("two", 1).number == 1


def test_trials_can_be_read_while_others_are_written(tmp_path: Path) -> None:
    """Reading trials doesn't block a writer, and the reader doesn't see trials added meanwhile."""
    with filled(tmp_path, "one", trials=3) as writer, Store(tmp_path, create=False) as reader:
        reading = reader.trials("one")
        assert next(reading).number == 1
        writer.add_trial(trial_record(4, run_id="one"))
        assert [record.number for record in reading] == [2, 3]
        assert len(list(reader.trials("one"))) == 4


def test_many_may_begin_at_once(tmp_path: Path) -> None:
    """Several processes can create the same store at the same moment without losing a run."""
    together = Barrier(6)

    def begin(number: int) -> None:
        together.wait(10)
        with filled(tmp_path / "runs", f"run-{number}", trials=3):
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(begin, range(6)))
    with Store(tmp_path / "runs") as store:
        assert sorted(run.spec.run_id for run in store.runs()) == [f"run-{number}" for number in range(6)]
        assert all(len(list(store.trials(f"run-{number}"))) == 3 for number in range(6))


def test_nobody_is_refused_a_store_that_another_is_making(tmp_path: Path) -> None:
    """Opening a new store never fails while another process creates it, in 30 attempts by 4 threads at once."""
    together = Barrier(4)

    def open_all(_: int) -> None:
        for number in range(30):
            together.wait(10)
            Store(tmp_path / str(number)).__exit__(None, None, None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_all, range(4)))
