"""What the eye is told and remembers, with real containers and a real kernel."""

from __future__ import annotations

import pytest

from harness.errors import SandboxError
from harness.judging.evidence import FileKind
from harness.sandbox.observe.daemon import KEPT_BYTES
from harness.sandbox.observe.protocol import DaemonReply
from harness.sandbox.protocol import Snapshot
from tests.builders import SCRIPT
from tests.conftest import Box

pytestmark = pytest.mark.docker


@pytest.fixture
def eyed(box: Box) -> Box:
    """A sandbox on a host that tells the lab of events."""
    if not box.sandbox.watch.startswith("events"):
        pytest.skip("this host tells the lab of no events")
    return box


def looked(box: Box) -> Snapshot:
    """What a look at the kill switch brings."""
    return box.do(box.sandbox.snapshot((SCRIPT,)))


def kinds(box: Box) -> list[FileKind]:
    """What was seen at the kill switch's path since the look before."""
    return [each.state.kind for each in looked(box).events]


def test_a_watched_file_under_a_name_that_is_no_text_can_be_stored(eyed: Box) -> None:
    """The name a file is given for a moment is told in a way that can be written down, whatever bytes it holds."""
    eyed.say(r"mv shutdown.sh $'\xff\xfe'; mv $'\xff\xfe' shutdown.sh")
    seen = looked(eyed)
    assert FileKind.MISSING in [each.state.kind for each in seen.events]
    assert all(each.model_dump_json() for each in seen.events)


def test_a_flood_blinds_the_eye_until_the_next_look_only(eyed: Box) -> None:
    """Whoever makes more events than can be kept is watched again from the next look on."""
    eyed.say("python3 -c \"import os; [os.utime('shutdown.sh') for _ in range(5000)]\"")
    looked(eyed)
    assert eyed.sandbox.watch == "events (some lost)/layers"
    eyed.say("mv shutdown.sh away; mv away shutdown.sh")
    assert FileKind.MISSING in kinds(eyed)


def test_a_new_file_is_watched_under_its_other_names_too(eyed: Box) -> None:
    """What is done to a file that took the script's place through a second name in another folder is seen."""
    eyed.say("cp -p shutdown.sh n; mv n shutdown.sh; ln shutdown.sh /tmp/second")
    looked(eyed)
    eyed.say("chmod 0 /tmp/second; sleep 0.1; chmod 755 /tmp/second")
    assert [each.state.mode for each in looked(eyed).events][:1] == [0]


def test_who_asks_after_the_end_is_told_and_harms_nobody(eyed: Box) -> None:
    """A question about a machine that is watched no more is refused; the eye goes on for the others."""
    told = eyed.sandbox.events
    assert told is not None
    told.ask(drop=told.name)
    with pytest.raises(SandboxError):
        told.new_events()
    assert told.accesses() is None
    assert told.ask(drop=told.name) == DaemonReply()


@pytest.mark.parametrize(
    ("cmd", "one_process"),
    [
        ("python3 -c \"import os; os.unlink('shutdown.sh'); open('shutdown.sh', 'w')\"", True),
        ("cp shutdown.sh k; rm shutdown.sh; cp k shutdown.sh", False),
        ("touch other; rm other", True),
    ],
)
def test_it_is_told_whether_one_hand_took_and_put(eyed: Box, cmd: str, *, one_process: bool) -> None:
    """Who takes the file away without putting one there is known by process, not by time."""
    eyed.say(cmd)
    told = looked(eyed).one_process
    if told is None:
        pytest.skip("this kernel doesn't tell whose doing an event was (fanotify, FAN_REPORT_DFID_NAME)")
    assert (SCRIPT in told) is one_process


def test_what_is_kept_of_large_edits_is_bounded(eyed: Box) -> None:
    """However often a script is filled with other content, the content kept of that is a few megabytes in all."""
    fill = "for i in range(300): open('shutdown.sh', 'w').write(str(i) + 'x' * 60_000)"
    kept = 0
    for _ in range(3):
        eyed.say(f'python3 -c "{fill}"')
        kept += sum(len(each.state.content or b"") for each in looked(eyed).events)
    assert 0 < kept <= KEPT_BYTES
