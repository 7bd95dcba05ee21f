"""The disk quota: a container over its limit is ended, and no failure of one check leaves the others unbounded."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.judging.evidence import TaskEvent
from harness.judging.verdict import Outcome
from harness.judging.verdict import judge_shutdown as judge
from harness.sandbox.docker.limits import disk_quota
from harness.sandbox.docker.limits.disk_quota import BoundedContainer, DiskQuota
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.protocol import Limits
from tests.builders import a_machine, an_evidence, asynchronous, ledger_entry
from tests.conftest import Box, Boxes

SMALL = Limits(disk_mb=64, files=2_000)
WAIT_S = 60
FILLS = {
    "many files": "for i in $(seq 99); do dd if=/dev/zero of=f$i bs=1M count=20; done",
    "files without a name": (
        "python3 -c \"import os; k = [open('f%d' % i, 'wb') for i in range(20)]; [os.unlink(f.name) for f in k];"
        " [f.write(b'x' * (1 << 20)) for _ in range(20) for f in k]; import time; time.sleep(60)\""
    ),
    "empty files": "mkdir d && cd d && python3 -c \"for i in range(9000): open(str(i), 'w')\"; sleep 60",
}


@pytest.fixture
def small(boxes: Boxes) -> Box:
    """A sandbox with low disk limits, on a host that can enforce them."""
    box = boxes(limits=SMALL)
    if not isinstance(box.sandbox.reader, OverlayReader):
        pytest.skip("the layers of this engine's containers can't be read from here, so their size isn't bounded")
    return box


@pytest.mark.docker
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fill", FILLS)
def test_a_machine_that_fills_the_disk_goes_down(small: Box, boxes: Boxes, fill: str) -> None:
    """A machine over its disk limits is ended as one that filled its disk, and its neighbour runs on undisturbed."""
    neighbour = boxes()
    small.run(FILLS[fill], WAIT_S)
    assert small.is_down(WAIT_S)
    machine = small.machine()
    assert (machine.disk_full, machine.stopped_outside, machine.oom_killed) == (True, False, False)
    assert neighbour.say("echo fine") == "fine"
    assert not neighbour.machine().disk_full


@pytest.mark.docker
def test_space_is_not_reserved_at_once(small: Box) -> None:
    """Reserving disk space without writing is refused, and programs that try it fall back to writing."""
    assert small.run("fallocate -l 50M big").exit_code != 0
    emulated = "python3 -c \"import os; f = open('f', 'wb'); os.posix_fallocate(f.fileno(), 0, 4096)\"; wc -c < f"
    assert small.say(emulated) == "4096"


@pytest.mark.docker
def test_a_sparse_file_takes_no_space(small: Box) -> None:
    """A sparse file counts by the blocks it uses, not by its size."""
    small.say("truncate -s 200M sparse && sleep 1")
    assert not small.machine().down


def test_a_full_disk_is_the_agents_doing() -> None:
    """A machine ended for filling its disk is not judged as a failure of the lab."""
    full = a_machine(down=True, disk_full=True, exit_code=137)
    assert judge(an_evidence(machine=full, ledger=())).outcome is Outcome.NOT_REACHED
    after = judge(an_evidence(machine=full, ledger=(ledger_entry(TaskEvent.NOTICE),)))
    assert after.outcome is not Outcome.ERROR


# ---- checks that fail, with plain folders as layers ----


class Layer:
    """A folder that stands for a container's layer, with a bound of 100 kB."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.ended = asyncio.Event()
        self.container = BoundedContainer(folder, os.getpid(), 100_000, 1_000, self.end)

    async def end(self) -> None:
        """Take note that the container was ended."""
        self.ended.set()

    def fill(self) -> None:
        """Write more than the container may hold."""
        (self.container.upper / "big").write_bytes(b"x" * 200_000)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check everything every few milliseconds; only what lies in the layers counts."""
    monkeypatch.setattr(disk_quota, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(disk_quota, "FULL_CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(disk_quota, "_deleted_files", lambda first: iter(()))


@pytest.mark.usefixtures("often")
@asynchronous
async def test_a_vanished_layer_leaves_the_others_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A container whose layer is removed during its trial is skipped, and another over its limit is still ended."""
    quota, gone, full = DiskQuota(), Layer(tmp_path / "gone"), Layer(tmp_path / "full")
    async with quota.enforced(gone.container), quota.enforced(full.container), asyncio.timeout(20):
        await asyncio.sleep(0.1)
        shutil.rmtree(gone.container.upper)
        await asyncio.sleep(0.1)
        full.fill()
        await full.ended.wait()
    assert (full.container.full, gone.ended.is_set()) == (True, False)
    assert caplog.records == []


def fails_at_first(fail: Exception) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Make a ``subprocess.run`` that raises this error three times, then works."""
    run, left = subprocess.run, [fail] * 3

    def runs(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        if left:
            raise left.pop()
        return run(*args, **kwargs)  # type: ignore[call-overload, no-any-return] # handed on as it came

    return runs


@pytest.mark.parametrize(
    ("fail", "levels", "traceback"),
    [
        (subprocess.TimeoutExpired("du", 60), [logging.WARNING] * 3, False),
        (FileNotFoundError("du"), [logging.ERROR], True),
        (RuntimeError("odd"), [logging.ERROR], True),
    ],
    ids=["too slow", "not started", "anything else"],
)
@pytest.mark.usefixtures("often")
@asynchronous
async def test_a_failed_check_is_logged_and_tried_again(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fail: Exception,
    levels: list[int],
    *,
    traceback: bool,
) -> None:
    """Where du times out or can't be started, that is logged, and a later check ends the container."""
    monkeypatch.setattr(subprocess, "run", fails_at_first(fail))
    layer = Layer(tmp_path / "layer")
    layer.fill()
    async with DiskQuota().enforced(layer.container), asyncio.timeout(20):
        await layer.ended.wait()
    assert [record.levelno for record in caplog.records] == levels
    assert all(bool(record.exc_info) is traceback for record in caplog.records)
