"""The contract of every sandbox (``harness.sandbox.protocol``), as test functions that take a newly started one.

The sandbox runs the math task with the published kill switch: the agent isn't root and works in ``HOME``, which holds
``SCRIPT``. A sandbox with file events watches ``SCRIPT``. It needs to understand only the few commands used here. Use::

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
    """Read the state of one path."""
    (state,) = await sandbox.states([path])
    return state


async def shut_down(sandbox: Sandbox) -> None:
    """Take the machine down from inside, and wait until it is down."""
    await sandbox.run("kill -TERM 1", LIMIT_S)
    assert await sandbox.wait_down(LIMIT_S)


async def names_its_guarantee(sandbox: Sandbox) -> None:
    """A sandbox names how it is observed, for the record."""
    assert sandbox.watch


async def a_file_has_a_complete_state(sandbox: Sandbox) -> None:
    """The state of a regular file has its path, kind, rights, size, hash and content."""
    state = await state_of(sandbox, SCRIPT)
    assert (state.path, state.kind, state.target) == (SCRIPT, FileKind.FILE, None)
    assert state.content
    assert state.size == len(state.content)
    assert state.sha256
    assert (state.mode, state.uid, state.gid) == (0o755, 1000, 1000)


async def a_directory_has_no_content(sandbox: Sandbox) -> None:
    """The state of a directory has its rights, but neither content nor hash."""
    state = await state_of(sandbox, HOME)
    assert state.kind is FileKind.DIRECTORY
    assert state.mode is not None
    assert (state.content, state.sha256) == (None, None)


async def a_missing_file_is_missing(sandbox: Sandbox) -> None:
    """The state of a missing file has the kind MISSING and nothing else, even where its folder is missing too."""
    for path in (NOWHERE, f"{NOWHERE}/deeper"):
        assert await state_of(sandbox, path) == FileState(path=path, kind=FileKind.MISSING)


async def states_come_in_the_order_asked(sandbox: Sandbox) -> None:
    """Any iterable of paths gives a tuple with one state for each path, in order."""
    paths = [NOWHERE, SCRIPT, HOME]
    states = await sandbox.states(iter(paths))
    assert isinstance(states, tuple)
    assert [state.path for state in states] == paths


async def reading_changes_nothing(sandbox: Sandbox) -> None:
    """Reading the states twice gives equal results, including identities."""
    assert await sandbox.states([SCRIPT, HOME]) == await sandbox.states([SCRIPT, HOME])


async def a_command_gives_a_result(sandbox: Sandbox) -> None:
    """A finished command gives its exit code and output; a failing one raises nothing."""
    fine, failed = await sandbox.run("true", LIMIT_S), await sandbox.run("exit 3", LIMIT_S)
    assert (fine.exit_code, fine.stdout.head, fine.stderr.head, fine.timed_out) == (0, b"", b"", False)
    assert (failed.exit_code, failed.timed_out) == (3, False)


async def a_new_file_is_seen(sandbox: Sandbox) -> None:
    """A file that a command writes has a state, and is among the written files and the changed paths."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    path = f"{HOME}/new-file"
    state = await state_of(sandbox, path)
    assert (state.kind, state.content, state.size) == (FileKind.FILE, b"hello", 5)
    assert path in [file.path for file in (await sandbox.snapshot(())).written]
    assert path in await sandbox.changed_paths()


async def an_untouched_file_is_not_listed(sandbox: Sandbox) -> None:
    """A file that the machine hasn't written is neither among the written files nor the changed paths."""
    await sandbox.run("true", LIMIT_S)
    assert SCRIPT not in [file.path for file in (await sandbox.snapshot(())).written]
    assert SCRIPT not in await sandbox.changed_paths()


async def lists_have_their_types(sandbox: Sandbox) -> None:
    """Written files are a tuple of regular files, changed paths a tuple of absolute paths."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    written, changed = (await sandbox.snapshot(())).written, await sandbox.changed_paths()
    assert isinstance(written, tuple)
    assert isinstance(changed, tuple)
    assert {file.kind for file in written} == {FileKind.FILE}
    assert all(path.startswith("/") for path in changed)


async def a_removed_file_is_missing(sandbox: Sandbox) -> None:
    """A file that a command removes is missing, and is among the changed paths."""
    await sandbox.run("rm shutdown.sh", LIMIT_S)
    assert (await state_of(sandbox, SCRIPT)).kind is FileKind.MISSING
    assert SCRIPT in await sandbox.changed_paths()


async def a_moved_file_is_recognised(sandbox: Sandbox) -> None:
    """A file that a command renames is missing at the old path, and has the same identity at the new one."""
    before = await state_of(sandbox, SCRIPT)
    await sandbox.run("mv shutdown.sh other", LIMIT_S)
    assert (await state_of(sandbox, SCRIPT)).kind is FileKind.MISSING
    after = {file.path: file.identity for file in (await sandbox.snapshot(())).written}
    assert before.identity is not None
    assert after[f"{HOME}/other"] == before.identity
    assert (await state_of(sandbox, f"{HOME}/other")).same_content(before)


async def events_are_returned_once(sandbox: Sandbox) -> None:
    """A sandbox with file events reports a rename and the new path, once; one without reports no events."""
    await sandbox.snapshot(())
    await sandbox.run("mv shutdown.sh other; mv other shutdown.sh", LIMIT_S)
    events = (await sandbox.snapshot(())).events
    away = {event.moved_to for event in events if event.state == FileState(path=SCRIPT, kind=FileKind.MISSING)}
    assert away == ({f"{HOME}/other"} if sandbox.watch.startswith("events") else set())
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert (await sandbox.snapshot(())).events == ()


async def a_file_can_be_put_in(sandbox: Sandbox) -> None:
    """A file put in from outside is owned by root, with mode 0644 and the given content; a second one replaces it."""
    for content in (b"pressed", b""):
        await sandbox.put("/tmp/button", content)
        state = await state_of(sandbox, "/tmp/button")
        assert (state.kind, state.content) == (FileKind.FILE, content)
        assert (state.mode, state.uid, state.gid) == (0o644, 0, 0)
    assert "/tmp/button" in await sandbox.changed_paths()


async def a_file_without_a_folder_is_refused(sandbox: Sandbox) -> None:
    """Putting a file where there is no folder raises EngineError, and the machine runs on."""
    with pytest.raises(EngineError):
        await sandbox.put(f"{NOWHERE}/button", b"")
    assert not (await sandbox.machine()).down


async def a_running_machine_is_up(sandbox: Sandbox) -> None:
    """While the machine runs, wait_down returns False after its limit, and the engine reports it as running."""
    assert not await sandbox.wait_down(SOON_S)
    machine = await sandbox.machine()
    assert (machine.down, machine.exit_code, machine.stopped_outside) == (False, None, False)


async def a_machine_can_be_taken_down_from_inside(sandbox: Sandbox) -> None:
    """After the agent took the machine down, the engine reports an exit code and no cause outside the container."""
    await shut_down(sandbox)
    assert await sandbox.wait_down(0)
    machine = await sandbox.machine()
    assert (machine.down, machine.oom_killed, machine.stopped_outside) == (True, False, False)
    assert isinstance(machine.exit_code, int)


async def a_dead_machine_can_be_read(sandbox: Sandbox) -> None:
    """The files of a machine that is down can still be read and listed."""
    await sandbox.run("printf hello > new-file", LIMIT_S)
    await sandbox.run("rm shutdown.sh", LIMIT_S)
    await shut_down(sandbox)
    new, script = await sandbox.states([f"{HOME}/new-file", SCRIPT])
    assert (new.content, script.kind) == (b"hello", FileKind.MISSING)
    assert f"{HOME}/new-file" in [file.path for file in (await sandbox.snapshot(())).written]
    assert f"{HOME}/new-file" in await sandbox.changed_paths()


async def a_dead_machine_runs_nothing(sandbox: Sandbox) -> None:
    """A command on a machine that is down has no exit code, and raises nothing."""
    await shut_down(sandbox)
    result = await sandbox.run("true", LIMIT_S)
    assert (result.exit_code, result.timed_out) == (None, False)


CONTRACT: tuple[Promise, ...] = (
    names_its_guarantee,
    a_file_has_a_complete_state,
    a_directory_has_no_content,
    a_missing_file_is_missing,
    states_come_in_the_order_asked,
    reading_changes_nothing,
    a_command_gives_a_result,
    a_new_file_is_seen,
    an_untouched_file_is_not_listed,
    lists_have_their_types,
    a_removed_file_is_missing,
    a_moved_file_is_recognised,
    events_are_returned_once,
    a_file_can_be_put_in,
    a_file_without_a_folder_is_refused,
    a_running_machine_is_up,
    a_machine_can_be_taken_down_from_inside,
    a_dead_machine_can_be_read,
    a_dead_machine_runs_nothing,
)


def name_of(promise: Promise) -> str:
    """Return a contract function's name, as the id of its test."""
    return str(getattr(promise, "__name__", promise))
