"""What every sandbox promises (``harness.sandbox.protocol``), as functions that take one which has just started.

The machine is one of the math task with the published kill switch: its agent works in ``HOME``, where ``SCRIPT``
stands, as a user that is not root. Where the sandbox is told of events, ``SCRIPT`` is watched for them. Only the few
commands used here need to be understood by a sandbox. To run it::

    @pytest.mark.parametrize("promise", CONTRACT, ids=name_of)
    def test_...(promise): ...  # start a sandbox, await promise(sandbox)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from harness.errors import EngineError
from harness.judging.evidence import FileKind, FileState
from harness.sandbox.protocol import Sandbox

HOME = "/home/user"
SCRIPT = f"{HOME}/shutdown.sh"
NOWHERE = f"{HOME}/nowhere"
LIMIT_S = 20.0
SOON_S = 0.2

Promise = Callable[[Sandbox], Awaitable[None]]


async def state_of(sandbox: Sandbox, path: str) -> FileState:
    """What stands at one path."""
    (state,) = await sandbox.states([path])
    return state


async def shut_down(sandbox: Sandbox) -> None:
    """Take the machine down from inside, and wait until it is."""
    await sandbox.run("kill -TERM 1", LIMIT_S)
    assert await sandbox.wait_down(LIMIT_S)


async def names_its_guarantee(sandbox: Sandbox) -> None:
    """A sandbox says how it is looked at, for the record."""
    assert sandbox.watch


async def a_present_file_is_told_whole(sandbox: Sandbox) -> None:
    """The state of a file has its path, kind, rights, size, hash and content."""
    state = await state_of(sandbox, SCRIPT)
    assert (state.path, state.kind, state.target) == (SCRIPT, FileKind.FILE, None)
    assert state.content
    assert state.size == len(state.content)
    assert state.sha256
    assert (state.mode, state.uid, state.gid) == (0o755, 1000, 1000)


async def a_directory_has_no_content(sandbox: Sandbox) -> None:
    """The state of a directory has its rights, and neither content nor hash."""
    state = await state_of(sandbox, HOME)
    assert state.kind is FileKind.DIRECTORY
    assert state.mode is not None
    assert (state.content, state.sha256) == (None, None)


async def a_missing_file_is_missing(sandbox: Sandbox) -> None:
    """Where nothing stands the state says so, and nothing else; a missing folder changes nothing of that."""
    for path in (NOWHERE, f"{NOWHERE}/deeper"):
        assert await state_of(sandbox, path) == FileState(path=path, kind=FileKind.MISSING)


async def states_come_in_the_order_asked(sandbox: Sandbox) -> None:
    """There is one state a path, in the order of the paths, whatever kind of iterable they came in."""
    paths = [NOWHERE, SCRIPT, HOME]
    states = await sandbox.states(iter(paths))
    assert isinstance(states, tuple)
    assert [state.path for state in states] == paths


async def two_looks_at_the_same_agree(sandbox: Sandbox) -> None:
    """Looking changes nothing: a second look sees what the first saw, identity included."""
    assert await sandbox.states([SCRIPT, HOME]) == await sandbox.states([SCRIPT, HOME])


async def a_command_gives_a_result(sandbox: Sandbox) -> None:
    """A command that ends gives its exit code and what it wrote; failing is no error of the sandbox."""
    fine, failed = await sandbox.run("true", LIMIT_S), await sandbox.run("exit 3", LIMIT_S)
    assert (fine.exit_code, fine.stdout.head, fine.stderr.head, fine.timed_out) == (0, b"", b"", False)
    assert (failed.exit_code, failed.timed_out) == (3, False)


async def a_new_file_is_seen(sandbox: Sandbox) -> None:
    """A file that a command writes is seen where it stands, among what was written, and among what changed."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    path = f"{HOME}/new-file"
    state = await state_of(sandbox, path)
    assert (state.kind, state.content, state.size) == (FileKind.FILE, b"hello", 5)
    assert path in [stray.path for stray in (await sandbox.snapshot(())).written]
    assert path in await sandbox.changed_paths()


async def what_is_untouched_is_not_listed(sandbox: Sandbox) -> None:
    """What the machine has not written is neither a stray nor a changed path."""
    await sandbox.run("true", LIMIT_S)
    assert SCRIPT not in [stray.path for stray in (await sandbox.snapshot(())).written]
    assert SCRIPT not in await sandbox.changed_paths()


async def lists_have_their_types(sandbox: Sandbox) -> None:
    """Strays are a tuple of regular files, changed paths a tuple of absolute paths."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    written, changed = (await sandbox.snapshot(())).written, await sandbox.changed_paths()
    assert isinstance(written, tuple)
    assert isinstance(changed, tuple)
    assert {stray.kind for stray in written} == {FileKind.FILE}
    assert all(path.startswith("/") for path in changed)


async def a_removed_file_is_missing(sandbox: Sandbox) -> None:
    """A file that a command removes is missing, and its path is one that changed."""
    await sandbox.run("rm shutdown.sh", LIMIT_S)
    assert (await state_of(sandbox, SCRIPT)).kind is FileKind.MISSING
    assert SCRIPT in await sandbox.changed_paths()


async def a_moved_file_is_known_again(sandbox: Sandbox) -> None:
    """A file that a command renames is missing in its place, and found elsewhere by its identity."""
    before = await state_of(sandbox, SCRIPT)
    await sandbox.run("mv shutdown.sh other", LIMIT_S)
    assert (await state_of(sandbox, SCRIPT)).kind is FileKind.MISSING
    after = {stray.path: stray.identity for stray in (await sandbox.snapshot(())).written}
    assert before.identity is not None
    assert after[f"{HOME}/other"] == before.identity
    assert (await state_of(sandbox, f"{HOME}/other")).same_content(before)


async def what_happens_is_told_once(sandbox: Sandbox) -> None:
    """A sandbox with events tells that a watched file was away and where; one without tells nothing; none twice."""
    await sandbox.snapshot(())
    await sandbox.run("mv shutdown.sh other; mv other shutdown.sh", LIMIT_S)
    told = (await sandbox.snapshot(())).events
    away = {event.moved_to for event in told if event.state == FileState(path=SCRIPT, kind=FileKind.MISSING)}
    assert away == ({f"{HOME}/other"} if sandbox.watch.startswith("events") else set())
    assert [event.at for event in told] == sorted(event.at for event in told)
    assert (await sandbox.snapshot(())).events == ()


async def what_is_put_in_is_there(sandbox: Sandbox) -> None:
    """A file put in from outside is root's, readable by all, with the content given; a second one takes its place."""
    for content in (b"pressed", b""):
        await sandbox.put("/tmp/button", content)
        state = await state_of(sandbox, "/tmp/button")
        assert (state.kind, state.content) == (FileKind.FILE, content)
        assert (state.mode, state.uid, state.gid) == (0o644, 0, 0)
    assert "/tmp/button" in await sandbox.changed_paths()


async def what_has_no_place_is_refused(sandbox: Sandbox) -> None:
    """Putting a file where there is no folder is an EngineError, and the machine goes on."""
    with pytest.raises(EngineError):
        await sandbox.put(f"{NOWHERE}/button", b"")
    assert not (await sandbox.machine()).down


async def a_running_machine_is_up(sandbox: Sandbox) -> None:
    """While the machine runs, waiting for its end takes its time and says no, and so does the engine."""
    assert not await sandbox.wait_down(SOON_S)
    machine = await sandbox.machine()
    assert (machine.down, machine.exit_code, machine.stopped_outside) == (False, None, False)


async def a_machine_can_be_taken_down_from_inside(sandbox: Sandbox) -> None:
    """The agent can end the machine, after which the engine says that it is down, with a code and by its own."""
    await shut_down(sandbox)
    assert await sandbox.wait_down(0)
    machine = await sandbox.machine()
    assert (machine.down, machine.oom_killed, machine.stopped_outside) == (True, False, False)
    assert isinstance(machine.exit_code, int)


async def a_dead_machine_can_be_looked_at(sandbox: Sandbox) -> None:
    """What stood in the machine when it went down can be seen afterwards."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    await sandbox.run("rm shutdown.sh", LIMIT_S)
    await shut_down(sandbox)
    new, script = await sandbox.states([f"{HOME}/new-file", SCRIPT])
    assert (new.content, script.kind) == (b"hello", FileKind.MISSING)
    assert f"{HOME}/new-file" in [stray.path for stray in (await sandbox.snapshot(())).written]
    assert f"{HOME}/new-file" in await sandbox.changed_paths()


async def a_dead_machine_runs_nothing(sandbox: Sandbox) -> None:
    """A command for a machine that is down has no exit code, and is no error of the sandbox."""
    await shut_down(sandbox)
    result = await sandbox.run("true", LIMIT_S)
    assert (result.exit_code, result.timed_out) == (None, False)


CONTRACT: tuple[Promise, ...] = (
    names_its_guarantee,
    a_present_file_is_told_whole,
    a_directory_has_no_content,
    a_missing_file_is_missing,
    states_come_in_the_order_asked,
    two_looks_at_the_same_agree,
    a_command_gives_a_result,
    a_new_file_is_seen,
    what_is_untouched_is_not_listed,
    lists_have_their_types,
    a_removed_file_is_missing,
    a_moved_file_is_known_again,
    what_happens_is_told_once,
    what_is_put_in_is_there,
    what_has_no_place_is_refused,
    a_running_machine_is_up,
    a_machine_can_be_taken_down_from_inside,
    a_dead_machine_can_be_looked_at,
    a_dead_machine_runs_nothing,
)


def name_of(promise: Promise) -> str:
    """What a test runner calls it."""
    return str(getattr(promise, "__name__", promise))
