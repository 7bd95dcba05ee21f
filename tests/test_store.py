from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from harness.errors import UsageError
from harness.models import Entry
from harness.store import FILE, SCHEMA, Store
from harness.verdict import Kind, Outcome
from tests.builders import a_verdict, outlived, run_spec, shell, trial_record, versions

IMAGE = {"tag": "sandbox:1", "packages": ["bash 5.2"]}


def filled(folder: Path, *run_ids: str, trials: int = 0) -> Store:
    """A store with these runs, and trials of the first of them."""
    store = Store(folder)
    for run_id in run_ids:
        store.add_run(run_spec(run_id), IMAGE, versions())
    for number in range(1, trials + 1):
        store.add_trial(trial_record(number, run_id=run_ids[0]))
    return store


# ---- what is kept ----


def test_a_run_comes_back(tmp_path: Path) -> None:
    """A stored run has its spec, image and versions, and the time it was made."""
    with filled(tmp_path, "one") as store:
        stored = store.run("one")
    assert (stored.spec, stored.image, stored.versions) == (run_spec("one"), IMAGE, versions())
    assert stored.created_at.startswith("20")


def test_a_trial_comes_back(tmp_path: Path) -> None:
    """A stored trial is the same record: verdict, evidence, transcript and all, whatever bytes are in it."""
    hostile = "\x1b[31m[red] \u202e \0 ä 🐕"
    record = trial_record(
        evidence=outlived(),
        verdict=a_verdict(Outcome.RESISTED, Kind.EDITED),
        transcript=(Entry(role="assistant", text=hostile, calls=(shell(hostile),), raw={"content": [hostile]}),),
        agent={"playbook": "edit", "expected": None},
    )
    with filled(tmp_path, "a-run") as store:
        store.add_trial(record)
        assert store.trial("a-run", 1) == record
        assert list(store.trials("a-run")) == [record]


def test_a_store_outlives_its_process(tmp_path: Path) -> None:
    """What was stored is there when the store is opened again, to read or to write."""
    with filled(tmp_path, "one", trials=1):
        pass
    for create in (True, False):
        with Store(tmp_path, create=create) as store:
            assert store.trial("one", 1).number == 1


def test_trials_come_in_order(tmp_path: Path) -> None:
    """However they were finished, trials come back by number, and only those of their run."""
    with filled(tmp_path, "one", "two") as store:
        for number in (10, 2, 1):
            store.add_trial(trial_record(number, run_id="one"))
        store.add_trial(trial_record(5, run_id="two"))
        assert [record.number for record in store.trials("one")] == [1, 2, 10]


def test_runs_come_oldest_first(tmp_path: Path) -> None:
    """Runs are listed in the order they were made, also those of one second, and "last" is the newest."""
    with filled(tmp_path, "b", "c", "a") as store:
        assert [run.spec.run_id for run in store.runs()] == ["b", "c", "a"]
        assert store.run("last").spec.run_id == "a"


def test_the_file_can_be_asked_with_sql(tmp_path: Path) -> None:
    """Outcome, tampering, tokens and seconds of a trial stand in columns of their own."""
    with filled(tmp_path, "a-run") as store:
        store.add_trial(trial_record(3, verdict=a_verdict(Outcome.RESISTED, Kind.MOVED), tokens=9))
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        rows = db.execute("SELECT run_id, number, outcome, tampered, tokens, seconds FROM trials").fetchall()
    assert rows == [("a-run", 3, "resisted", 1, 9, 1.5)]


# ---- what is refused ----


def test_a_run_id_is_taken_once(tmp_path: Path) -> None:
    """A second run of one id is refused, and the first is as it was."""
    with filled(tmp_path, "one") as store:
        with pytest.raises(UsageError, match="already a run 'one' here: choose another --run-id"):
            store.add_run(run_spec("one", n=7), IMAGE, versions())
        assert store.run("one").spec.n == 1


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    """A run that isn't there is refused with the names that are near."""
    with filled(tmp_path, "monday-1", "tuesday") as store, pytest.raises(UsageError, match=r"did you mean monday-1\?"):
        store.run("monday")


def test_an_unknown_trial_is_refused(tmp_path: Path) -> None:
    """A trial that isn't finished, or never was, is named in the refusal."""
    with filled(tmp_path, "one", trials=1) as store, pytest.raises(UsageError, match="'one' has no finished trial 2"):
        store.trial("one", 2)


def test_looking_makes_no_store(tmp_path: Path) -> None:
    """Opened to look, a folder without runs is refused and stays as it is."""
    with pytest.raises(UsageError, match="no runs in"):
        Store(tmp_path / "runs", create=False)
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_refused(tmp_path: Path) -> None:
    """A store of another version is neither read nor changed, and the refusal says which it is."""
    with filled(tmp_path, "one"):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(UsageError, match=f"has schema {SCHEMA + 1} and this version reads up to {SCHEMA}"):
        Store(tmp_path)


def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """A store that knows no control trials keeps its runs, and from then on knows them."""
    with filled(tmp_path, "one"):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("DROP TABLE controls")
        db.execute("PRAGMA user_version=1")
    with Store(tmp_path) as store:
        assert store.run("one").spec.run_id == "one"
        assert store.control("key") is None
        store.add_control("key", trial_record())
        store.add_control("key", trial_record())
        assert store.control("key") == trial_record()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Where the folder can't be made there is one sentence, and the file in its place is left alone."""
    (tmp_path / "runs").write_text("mine")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(UsageError, match="can't be written"):
            Store(folder)
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """Another program's file of that name is not touched."""
    (tmp_path / FILE).write_text("this is no database, and long enough to be seen as none" * 40)
    with pytest.raises(UsageError, match="not a database"):
        Store(tmp_path)


# ---- several at once, and half-written ----

HALF = "INSERT INTO trials VALUES ('one', 1, 'error', 0, 0, 0.0, '{')"


def write_half(store: Store) -> None:
    """Be interrupted while a trial is being written."""
    with store._transaction():
        store._db.execute(HALF)
        raise KeyboardInterrupt


def test_half_a_trial_is_none(tmp_path: Path) -> None:
    """When writing breaks off in the middle nothing of it is there, and the next trial can be written."""
    with filled(tmp_path, "one") as store:
        with pytest.raises(KeyboardInterrupt):
            write_half(store)
        assert list(store.trials("one")) == []
        store.add_trial(trial_record(1, run_id="one"))
        assert store.trial("one", 1).number == 1


def test_a_process_that_dies_writing_leaves_nothing(tmp_path: Path) -> None:
    """What a writer had not finished when it was gone is not there for the next one."""
    with filled(tmp_path, "one"):
        pass
    dying = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    dying.execute("BEGIN IMMEDIATE")
    dying.execute(HALF)
    dying.close()
    with Store(tmp_path) as store:
        assert list(store.trials("one")) == []


def test_two_stores_share_a_file(tmp_path: Path) -> None:
    """What one process stores the other sees at once, whichever made the file."""
    with filled(tmp_path, "one") as first, Store(tmp_path) as second:
        second.add_run(run_spec("two"), IMAGE, versions())
        first.add_trial(trial_record(1, run_id="two"))
        assert [run.spec.run_id for run in first.runs()] == ["one", "two"]
        assert second.trial("two", 1).number == 1


def test_trials_can_be_read_while_others_are_written(tmp_path: Path) -> None:
    """Reading a run in the middle neither blocks a writer nor is disturbed by it."""
    with filled(tmp_path, "one", trials=3) as writer, Store(tmp_path, create=False) as reader:
        reading = reader.trials("one")
        assert next(reading).number == 1
        writer.add_trial(trial_record(4, run_id="one"))
        assert [record.number for record in reading] == [2, 3]
        assert len(list(reader.trials("one"))) == 4


def test_many_may_begin_at_once(tmp_path: Path) -> None:
    """Processes that make the same store at the same moment all get it, and lose no run."""
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
