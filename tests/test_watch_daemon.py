"""The watch daemon and its client, with real containers and a real kernel; restarts need no container."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from harness.errors import SandboxError
from harness.judging.evidence import FileKind
from harness.sandbox.observe.client import DaemonClient, DaemonSupervisor, EventSource, daemon_client
from harness.sandbox.observe.daemon import MAX_CONTENT_BYTES
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.observe.protocol import DaemonReply
from harness.sandbox.protocol import Snapshot
from tests.builders import SCRIPT, machine_spec
from tests.conftest import Box, Boxes

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="the watch daemon needs Linux and root"
)


@pytest.fixture
def watched(box: Box) -> Box:
    """A sandbox on a host that reports file events."""
    if not box.sandbox.watch.startswith("events"):
        pytest.skip("this host reports no file events")
    return box


def snapshot(box: Box) -> Snapshot:
    """Take a snapshot of the kill switch."""
    return box.do(box.sandbox.snapshot((SCRIPT,)))


def kinds(box: Box) -> list[FileKind]:
    """Return what the file events since the last snapshot found at the kill switch's path."""
    return [each.state.kind for each in snapshot(box).events]


@pytest.mark.docker
def test_a_watched_file_under_a_name_that_is_no_text_can_be_stored(watched: Box) -> None:
    """A file event can be stored as JSON even where the file's temporary name isn't valid UTF-8."""
    watched.say(r"mv shutdown.sh $'\xff\xfe'; mv $'\xff\xfe' shutdown.sh")
    events = snapshot(watched).events
    assert FileKind.MISSING in [each.state.kind for each in events]
    assert all(each.model_dump_json() for each in events)


@pytest.mark.docker
def test_a_flood_of_events_is_lost_until_the_next_snapshot_only(watched: Box) -> None:
    """A sandbox with more events than can be kept is watched again from the next snapshot on."""
    watched.say("python3 -c \"import os; [os.utime('shutdown.sh') for _ in range(5000)]\"")
    snapshot(watched)
    assert watched.sandbox.watch == "events (some lost)/layers"
    watched.say("mv shutdown.sh away; mv away shutdown.sh")
    assert FileKind.MISSING in kinds(watched)


@pytest.mark.docker
def test_a_new_file_is_watched_under_its_other_names_too(watched: Box) -> None:
    """A change made to the script's replacement through a hard link in another folder is seen."""
    watched.say("cp -p shutdown.sh n; mv n shutdown.sh; ln shutdown.sh /tmp/second")
    snapshot(watched)
    watched.say("chmod 0 /tmp/second; sleep 0.1; chmod 755 /tmp/second")
    assert [each.state.mode for each in snapshot(watched).events][:1] == [0]


@pytest.mark.docker
def test_a_question_after_the_watch_ended_fails_alone(watched: Box) -> None:
    """A request for the events of an ended watch raises SandboxError, and the daemon goes on."""
    source = watched.sandbox.events
    assert source is not None
    source.ask(unwatch=source.name)
    with pytest.raises(SandboxError):
        source.new_events()
    assert source.accesses() is None
    assert source.ask(unwatch=source.name) == DaemonReply()


@pytest.mark.docker
@pytest.mark.parametrize(
    ("cmd", "one_process"),
    [
        ("python3 -c \"import os; os.unlink('shutdown.sh'); open('shutdown.sh', 'w')\"", True),
        ("cp shutdown.sh k; rm shutdown.sh; cp k shutdown.sh", False),
        ("touch other; rm other", True),
    ],
)
def test_a_removal_and_a_new_file_are_attributed_to_processes(watched: Box, cmd: str, *, one_process: bool) -> None:
    """A process that removes the file without putting one there is found by its process id, not by time."""
    watched.say(cmd)
    paths = snapshot(watched).one_process
    if paths is None:
        pytest.skip("this kernel doesn't attribute events to processes (fanotify, FAN_REPORT_DFID_NAME)")
    assert (SCRIPT in paths) is one_process


@pytest.mark.docker
def test_what_is_kept_of_large_edits_is_bounded(watched: Box) -> None:
    """However often a script is overwritten, the contents kept in its events are a few megabytes in total."""
    fill = "for i in range(300): open('shutdown.sh', 'w').write(str(i) + 'x' * 60_000)"
    kept = 0
    for _ in range(3):
        watched.say(f'python3 -c "{fill}"')
        kept += sum(len(each.state.content or b"") for each in snapshot(watched).events)
    assert 0 < kept <= MAX_CONTENT_BYTES


# ---- a daemon that dies ----


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[OverlayReader]:
    """Reads a kill switch in plain folders that are laid out like a container's layers and its merged root."""
    for name in ("upper", "merged", "made", "image"):
        (tmp_path / f"{name}/home/user").mkdir(parents=True)
    with closing(OverlayReader(tmp_path / "upper", (str(tmp_path / "made"), str(tmp_path / "image")))) as reader:
        edit(reader, "kill")
        yield reader


def merged(reader: OverlayReader) -> Path:
    """Return the folder that stands for the container's root."""
    return reader.upper.with_name("merged")


def edit(reader: OverlayReader, content: str) -> None:
    """Write the kill switch where its events are watched; an overlay would write it to the upper layer by itself."""
    for root in (reader.upper, merged(reader)):
        (root / SCRIPT[1:]).write_text(content)


def watching(client: DaemonClient, reader: OverlayReader) -> AbstractContextManager[EventSource]:
    """Watch the script as if this process were the container's first one."""
    spec = machine_spec(watched=(SCRIPT,))
    return client.watching(reader, str(merged(reader)), spec, container="none", first=os.getpid())


def kill(client: DaemonClient) -> None:
    """Kill a daemon and wait until it has ended."""
    os.kill(client.pid, signal.SIGKILL)
    os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOWAIT)


@needs_root
def test_a_dead_daemon_is_replaced(reader: OverlayReader, caplog: pytest.LogCaptureFixture) -> None:
    """A killed daemon fails its own watches in one sentence, and the next watch gets a new daemon, with a warning."""
    first = daemon_client()
    with watching(first, reader) as source:
        assert not source.new_events().events
        edit(reader, "true")
        assert source.new_events().events
        kill(first)
        edit(reader, "exit")
        for ask in (source.new_events, source.accesses):
            with pytest.raises(SandboxError, match=r"^the watch daemon died, so [^.]*$"):
                ask()
        with caplog.at_level(logging.WARNING):
            second = daemon_client()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "the watch daemon died" in caplog.text
        assert second is daemon_client() is not first
        with watching(second, reader) as other:
            edit(reader, "false")
            assert [each.state.content for each in other.new_events().events][-1:] == [b"false"]
            with pytest.raises(SandboxError):  # the old watch never speaks with the new daemon
                source.accesses()
    assert not first.is_alive()


def _fail_with(client: DaemonClient) -> None:
    kill(client)
    raise ZeroDivisionError


@needs_root
def test_the_end_of_a_watch_on_a_dead_daemon_hides_no_error(reader: OverlayReader) -> None:
    """A daemon's death neither masks the error that ended a block nor makes the end of the block fail."""
    client = DaemonClient()
    with pytest.raises(ZeroDivisionError), watching(client, reader):
        _fail_with(client)
    with pytest.raises(SandboxError), watching(client, reader):
        pytest.fail("a dead daemon watches nothing")
    supervisor = DaemonSupervisor(client)
    with watching(supervisor.client(), reader):
        kill(supervisor.client())
    supervisor.client().close()


@needs_root
def test_a_daemon_with_a_broken_connection_is_ended_and_replaced(reader: OverlayReader) -> None:
    """A daemon that lives but can't be talked to is ended; its watches keep their dirty flags until they end."""
    client = DaemonClient()
    supervisor = DaemonSupervisor(client)
    with watching(client, reader) as source:
        client._connection.close()
        with pytest.raises(SandboxError):
            source.accesses()
        second = supervisor.client()
        assert second is not client
        assert client._process.returncode is not None
        assert source.new_events() is source.no_events
    with watching(second, reader) as source:
        assert source.accesses() in ((), None)
    second.close()
    assert second._process.returncode == 0


@pytest.mark.docker
def test_a_sandbox_on_a_dead_daemon_is_removed_and_the_next_one_is_watched(watched: Box, boxes: Boxes) -> None:
    """A daemon's death fails the sandbox that it watched, whose container is still removed, and no later sandbox."""
    kill(daemon_client())
    watched.say("mv shutdown.sh away; mv away shutdown.sh")
    with pytest.raises(SandboxError, match="the watch daemon died"):
        snapshot(watched)
    following = boxes()
    following.say("mv shutdown.sh away; mv away shutdown.sh")
    assert FileKind.MISSING in kinds(following)


@needs_root
def test_many_threads_get_one_new_daemon(reader: OverlayReader) -> None:
    """Of threads that notice a daemon's death together, one starts the next daemon and all use it."""
    first = DaemonClient()
    supervisor, together = DaemonSupervisor(first), threading.Barrier(8)
    kill(first)

    def watch(_: int) -> DaemonClient:
        together.wait()
        client = supervisor.client()
        with watching(client, reader) as source:
            source.accesses()
        return client

    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(watch, range(8)))
    assert len(clients) == 1
    clients.pop().close()
