"""The interfaces of a sandbox (one machine with a shell, observed from outside) and of the back end that starts it.

``harness.sandbox.docker`` implements them with Docker containers. ``tests/fake_sandbox.py`` implements them in memory,
for tests that need no Docker. Both implementations pass the same tests (tests/contracts/sandbox.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from harness.judging.evidence import FileAccess, FileState, Frozen, Machine
from harness.sandbox.console import Answer, CommandResult
from harness.tasks.task import Mechanism, Task


class Limits(Frozen):
    """One machine's resource limits. Each default is the limit in the original study, if that study states one."""

    memory_mb: int = 256
    cpus: float = 0.5
    processes: int = 256
    open_files: int = 1024
    file_mb: int = 256
    disk_mb: int = 1024
    files: int = 100_000


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The image that a run needs: a base image with additions for the task and the kill switch.

    ``name`` is the base image's folder in sandbox_images/. If ``of_user`` is true, ``name`` is instead the tag of the
    user's own image, which already contains a kill switch.
    """

    name: str
    task: Task
    mechanism: Mechanism
    of_user: bool = False


class MachineSpec(Frozen):
    """The machine to start: its image's tag, the agent's user in it, and the paths watched for file events.

    ``programs`` are the watched paths at which the image has a compiled program. Processes that only read such a
    program aren't recorded, because no interpreter can run it.
    """

    image: str
    run_id: str
    trial: int
    user: str
    uid: int
    gid: int
    home: str
    workdir: str
    watched: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    limits: Limits = Limits()


class FileEvent(Frozen):
    """The state of the file at a watched path right after a file event.

    ``at`` is the time of the event on the monotonic clock, in seconds. ``moved_to`` is the file's new path if the file
    was renamed and its new folder is watched. ``came_from`` is the old path of a file that was renamed to the watched
    path; it is "" if the old folder isn't watched, and None if there was no such rename. ``writing`` is true if a
    process was still writing to the file, so that its content may be incomplete. ``started`` is true if a process was
    about to run the file.
    """

    at: float
    state: FileState
    moved_to: str | None = None
    came_from: str | None = None
    writing: bool = False
    started: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a machine's files at one moment, and the file events since the snapshot before.

    ``states`` are the states of the requested paths. ``written`` are the regular files that the machine has written or
    moved; a watched file that was moved is found among them by its identity. ``events`` is empty if the host can't
    observe events. ``one_process`` are the paths at which each process that removed the file also put a file there, as
    an editor does. ``one_process`` is None if the host can't tell which process caused an event.
    """

    states: tuple[FileState, ...]
    written: tuple[FileState, ...] = ()
    events: tuple[FileEvent, ...] = ()
    one_process: frozenset[str] | None = None


class Sandbox(Protocol):
    """One machine, from its start until it is removed. Its files can still be read after the machine has stopped."""

    @property
    def watch(self) -> str:
        """Return a short text for the trial's record that says how this sandbox is observed.

        The text says whether file events or only snapshots are taken, and how files are read.
        """

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a new login shell as the agent's user."""

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Take a snapshot of the machine's files, whether the machine is running or stopped.

        Each snapshot contains the file events since the snapshot before, so each event is returned once.
        """

    async def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the watched files so far, or None if the host can't observe them."""

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of each path, in the order given, whether the machine is running or stopped."""

    async def changed_paths(self) -> tuple[str, ...]:
        """List the paths at which the machine's files differ from those of the image."""

    async def put(self, path: str, content: bytes) -> None:
        """Write a file into the machine from outside. The file is owned by root and has mode 0644."""

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` as root with a clean environment. The lab uses this for its own actions, not for the agent's."""

    async def stop(self) -> None:
        """Stop the machine from outside. No process inside the machine can prevent that."""

    async def wait_down(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` until the machine has stopped, and return whether it has.

        Time in which the machine couldn't run because the host was busy isn't counted toward ``limit_s``.
        """

    async def machine(self) -> Machine:
        """Ask the engine for the machine's current state. Raises EngineError if the engine doesn't answer."""


class EngineHealth(Protocol):
    """The interface for checking the engine that runs the sandboxes: restarts, outages and recovery."""

    def restart_count(self) -> int:
        """Return how often the engine has restarted so far."""

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether the engine doesn't answer now, or has restarted since ``restart_count`` returned ``restarts``.

        Passing ``stopping`` makes the method wait, before it returns False, as long as a shutdown of the engine takes.
        """

    async def recovered(self) -> None:
        """Wait until the engine can run trials again. Raises EngineError if the engine doesn't recover."""


class AlwaysUp:
    """The EngineHealth of machines that need no engine, such as machines in memory. It never reports a failure."""

    def restart_count(self) -> int:
        """Return 0, because there is no engine that could restart."""
        return 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Return False, because there is no engine that could fail."""
        return False

    async def recovered(self) -> None:
        """Return at once, because there is no engine to wait for."""


class Backend(Protocol):
    """The interface of a back end, which starts sandboxes."""

    def start(self, spec: MachineSpec, answer: Answer) -> AbstractAsyncContextManager[Sandbox]:
        """Start a machine, and remove it when the block ends, even if it ends with an error.

        ``answer`` is called with each question that the task program in the machine sends to the lab, and returns the
        answer.
        """
