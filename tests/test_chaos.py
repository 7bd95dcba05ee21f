"""Runs that are killed or lose their engine: a short form of benchmarks/chaos.py."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos import Place, compared, kills, own_engine, restarts
from harness.errors import EngineError, ImageError
from harness.judging.verdict import Outcome
from harness.sandbox.docker.recovery import Recovery
from harness.sandbox.docker.setup.local_engine import SEARCH_PATH
from harness.sandbox.protocol import ImageRequest
from harness.store.store import Store
from harness.store.trial_row import trial_row
from harness.tasks.registry import mechanism_for, task_named
from tests.builders import asynchronous
from tests.conftest import ROOT

BOOKS = f"script:{ROOT / 'tasks' / 'playbooks' / 'harmless.yaml'}"


@pytest.mark.docker
@pytest.mark.usefixtures("client")
def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    """A run that is killed and resumed at random has each trial once, with the same verdicts, and leaves nothing."""
    counts = kills(Place(tmp_path, None, BOOKS, n=8, concurrency=4), times=3, seed=1)
    assert counts.disturbances
    assert (counts.trials, counts.planned) == (8, 8)
    assert counts.as_it_should_be, counts


@pytest.mark.docker
@pytest.mark.usefixtures("client")
def test_two_processes_share_a_run(tmp_path: Path) -> None:
    """Two processes that work on one run do each trial once between them."""
    place = Place(tmp_path, None, BOOKS, n=8, concurrency=2)
    place.finish("calm")
    processes = [place.start("wild"), place.start("wild")]
    assert [process.wait(100) for process in processes] == [0, 0], (tmp_path / "wild.log").read_text()
    counts = compared(place, 0, [process.pid for process in processes], 0.0)
    assert counts.as_it_should_be, counts
    log = (tmp_path / "wild.log").read_text()
    assert sorted(int(line.split("trial ")[1].split()[0]) for line in log.splitlines() if "/8  trial" in line) == [
        *range(1, 9)
    ]


@pytest.mark.docker
@pytest.mark.usefixtures("client")
def test_a_host_short_of_files_makes_no_verdict_wrong(tmp_path: Path) -> None:
    """A lab with too low a limit of open files tries trials again and warns; no unreadable file counts as tampering."""
    place = Place(tmp_path, None, BOOKS, n=16, concurrency=16)
    process = place.start("wild")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (52, 52))  # one trial at a time takes 37
    process.wait(100)
    with Store(tmp_path, create=False) as store:
        records = list(store.trials("wild"))
        judged = [trial_row(each) for each in records if each.verdict.outcome is not Outcome.ERROR]
    assert len(records) == 16
    assert all(each.agrees for each in judged)
    assert "ulimit -n" in (tmp_path / "wild.log").read_text()


@pytest.mark.docker
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("client")
def test_a_run_outlives_its_engine(tmp_path: Path) -> None:
    """A run whose engine is killed goes on once the engine is back, with each trial once and the same verdicts."""
    if os.geteuid() != 0 or not shutil.which("dockerd", path=SEARCH_PATH):
        pytest.skip("starting an engine needs root and dockerd")
    with own_engine() as paths:
        place = Place(tmp_path, paths.address, BOOKS, n=32, concurrency=4)  # fewer are done before it is killed
        counts = restarts(place, paths, times=1, seed=2)
    assert counts.disturbances == 1
    assert counts.failed_tries
    assert counts.as_it_should_be, counts
    with Store(tmp_path) as store:
        assert all(record.lab_failed for record in store.failed_tries("wild"))


# ---- an engine that fails for longer ----


def an_engine(answers: list[bool], *, has_image: bool = True, builds: str = "sandbox:1") -> tuple[Any, list[str]]:
    """Make a fake engine with these answers, then always True; return it and its progress lines."""
    said: list[str] = []

    async def answer() -> bool:
        return answers.pop(0) if answers else True

    async def has(tag: str) -> bool:
        return has_image

    async def prepare(run: Any) -> tuple[Any, None]:
        return SimpleNamespace(tag=builds), None

    restarts = SimpleNamespace(count=0)
    return SimpleNamespace(answers=answer, has_image=has, prepare=prepare, say=said.append, restarts=restarts), said


AN_IMAGE = ImageRequest("debian", task_named("math"), mechanism_for("math", None))


@asynchronous
async def test_an_engine_that_is_away_is_waited_for() -> None:
    """Recovery waits for an engine that doesn't answer, and says so once."""
    engine, said = an_engine([False, False])
    await Recovery(engine, AN_IMAGE, "sandbox:1").recovered()
    assert said == ["The Docker engine does not answer: waiting up to 300 s for it."]


@asynchronous
async def test_an_engine_that_stays_away_is_given_up() -> None:
    """Recovery raises EngineError where the engine doesn't answer within the patience."""
    engine, _ = an_engine([False] * 5)
    with pytest.raises(EngineError, match=r"^The Docker engine has not answered for 0\.1 s\.$"):
        await Recovery(engine, AN_IMAGE, "sandbox:1", patience_s=0.1).recovered()


@asynchronous
async def test_an_image_that_was_removed_is_built_again() -> None:
    """A removed image is built again, with a line of progress; ImageError where the new image would differ."""
    engine, said = an_engine([], has_image=False)
    await Recovery(engine, AN_IMAGE, "sandbox:1").recovered()
    assert said == ["The run's image sandbox:1 is gone: building it again."]
    engine, _ = an_engine([], has_image=False, builds="sandbox:2")
    with pytest.raises(ImageError, match="what it was built from is no longer the same"):
        await Recovery(engine, AN_IMAGE, "sandbox:1").recovered()


@asynchronous
async def test_an_engine_is_lost_when_it_was_restarted_or_is_away() -> None:
    """An engine is lost where it has restarted or doesn't answer, and only then."""
    engine, _ = an_engine([])
    recovery = Recovery(engine, AN_IMAGE, "sandbox:1")
    assert not await recovery.lost_since(0)
    asyncio.get_running_loop().call_later(0.05, setattr, engine.restarts, "count", 1)
    assert await recovery.lost_since(0)  # the end of its stream is noticed a moment later
    engine, _ = an_engine([False])
    assert await Recovery(engine, AN_IMAGE, "sandbox:1").lost_since(0)
