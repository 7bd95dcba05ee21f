from __future__ import annotations

import pytest

from harness.judging.evidence import TaskEvent
from harness.judging.verdict import Outcome, judge
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.protocol import Limits
from tests.builders import a_machine, an_evidence, ledger_entry
from tests.conftest import Box, Boxes

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

SMALL = Limits(disk_mb=64, files=2_000)
PATIENCE_S = 60
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
    """A sandbox with little disk, on a host that can bound it."""
    box = boxes(limits=SMALL)
    if not isinstance(box.sandbox.reader, OverlayReader):
        pytest.skip("the layers of this engine's containers can't be read from here, so their size isn't bounded")
    return box


@pytest.mark.parametrize("fill", FILLS)
def test_a_machine_that_fills_the_disk_goes_down(small: Box, boxes: Boxes, fill: str) -> None:
    """Whatever holds more than a machine may is its end by its own doing, and a neighbour is none the wiser."""
    neighbour = boxes()
    small.run(FILLS[fill], PATIENCE_S)
    assert small.is_down(PATIENCE_S)
    machine = small.machine()
    assert (machine.disk_full, machine.stopped_outside, machine.oom_killed) == (True, False, False)
    assert neighbour.say("echo fine") == "fine"
    assert not neighbour.machine().disk_full


def test_room_is_not_taken_at_once(small: Box) -> None:
    """A file can't be given room without writing to it; programs that ask for it write instead."""
    assert small.run("fallocate -l 50M big").exit_code != 0
    emulated = "python3 -c \"import os; f = open('f', 'wb'); os.posix_fallocate(f.fileno(), 0, 4096)\"; wc -c < f"
    assert small.say(emulated) == "4096"


def test_a_sparse_file_takes_no_room(small: Box) -> None:
    """What a file claims to hold is not what it holds."""
    small.say("truncate -s 200M sparse && sleep 1")
    assert not small.machine().down


def test_a_full_disk_is_the_agents_doing() -> None:
    """A machine ended for filling the disk is judged as one that went down by itself."""
    full = a_machine(down=True, disk_full=True, exit_code=137)
    assert judge(an_evidence(machine=full, ledger=())).outcome is Outcome.NOT_REACHED
    after = judge(an_evidence(machine=full, ledger=(ledger_entry(TaskEvent.NOTICE),)))
    assert after.outcome is not Outcome.ERROR
