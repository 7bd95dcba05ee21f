"""Defines the interfaces ``Sandbox`` and ``Backend``.

A sandbox is an isolated system with a shell, which the lab observes from outside. A back end starts sandboxes.
``harness.sandbox.docker`` implements both interfaces with Docker containers, and ``tests/fake_sandbox.py`` implements
them in memory. Both implementations pass the tests in tests/contracts/sandbox.py.
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
    """The resource limits of one sandbox. The default values are from the original study, if the study states them."""

    memory_mb: int = 256
    cpus: float = 0.5
    processes: int = 256
    open_files: int = 1024
    file_mb: int = 256
    disk_mb: int = 1024
    files: int = 100_000


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request for the container image of a run: a base image with additions for the task and the kill switch.

    ``name`` is the base image's folder in sandbox_images/. If ``of_user`` is true, ``name`` is instead the tag of an
    image that the user provides and that already contains a kill switch.
    """

    name: str
    task: Task
    mechanism: Mechanism
    of_user: bool = False


class MachineSpec(Frozen):
    """The settings for starting one sandbox, such as its image, the agent's user account and the resource limits.

    ``watched`` are the paths at which file events are recorded. ``programs`` are the watched paths that contain
    compiled programs in the image. A process that only reads such a program isn't recorded.
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
    """An event at a watched path, with the state of the file right after the event.

    ``at`` is the time of the event in seconds on the monotonic clock. If the file was renamed, ``moved_to`` is the new
    path, or None if the new folder isn't watched. If a file was renamed to the watched path, ``came_from`` is that
    file's old path, or "" if the old folder isn't watched. For other events, ``moved_to`` and ``came_from`` are None.
    ``writing`` is true if a process was still writing to the file, so the file's content may be incomplete. ``started``
    is true if a process was about to run the file.
    """

    at: float
    state: FileState
    moved_to: str | None = None
    came_from: str | None = None
    writing: bool = False
    started: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a sandbox's files at one moment, and the file events since the previous snapshot.

    ``states`` are the states of the requested paths. ``written`` are the states of the regular files that the sandbox
    has written or moved. ``events`` is empty if the host can't observe file events. ``one_process`` are the watched
    paths, without those at which a process removed a file and didn't create a new one there itself. ``one_process`` is
    None if the host can't tell which process caused an event.
    """

    states: tuple[FileState, ...]
    written: tuple[FileState, ...] = ()
    events: tuple[FileEvent, ...] = ()
    one_process: frozenset[str] | None = None


class Sandbox(Protocol):
    """One sandbox, from its start until its removal. Its files can still be read after it has stopped."""

    @property
    def watch(self) -> str:
        """Return a short description of how this sandbox is observed.

        The description is stored in the trial's record. It states whether file events or only snapshots are recorded,
        and how files are read.
        """

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run the shell command ``cmd`` in a new login shell as the agent's user, for at most ``limit_s`` seconds."""

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Take a snapshot of the sandbox's files, including the states of the files at ``paths``.

        The snapshot also contains the file events since the previous snapshot. A snapshot can be taken while the
        sandbox is running and after it has stopped.
        """

    async def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the watched files so far.

        Returns None if the accesses can't be observed or weren't recorded completely.
        """

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path, in the given order.

        The states can be read while the sandbox is running and after it has stopped.
        """

    async def changed_paths(self) -> tuple[str, ...]:
        """Return the paths at which the sandbox's files differ from the files in its image."""

    async def put(self, path: str, content: bytes) -> None:
        """Write ``content`` to the file ``path`` in the sandbox. The file is owned by root and has mode 0644."""

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run the shell command ``cmd`` as root with a clean environment, for at most ``limit_s`` seconds.

        The lab uses this method for its own actions. The agent's commands are run with ``run``.
        """

    async def stop(self) -> None:
        """Stop the sandbox from outside. No process inside the sandbox can prevent this."""

    async def wait_down(self, limit_s: float) -> bool:
        """Wait until the sandbox has stopped, for at most ``limit_s`` seconds. Return whether it has stopped.

        Time during which the host was too busy to run the sandbox isn't counted.
        """

    async def machine(self) -> Machine:
        """Return the current state of the sandbox, as reported by the engine.

        Raises EngineError if the engine doesn't answer.
        """


class EngineHealth(Protocol):
    """The interface for detecting restarts and outages of the container engine, and for awaiting recovery."""

    def restart_count(self) -> int:
        """Return the number of engine restarts so far."""

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Return whether the engine is down, or has restarted since ``restart_count`` returned ``restarts``.

        ``stopping`` is true if the engine may be shutting down. The method then waits as long as a shutdown may take
        before it returns False.
        """

    async def recovered(self) -> None:
        """Wait until the engine can run trials again. Raises EngineError if the engine doesn't recover."""


class AlwaysUp:
    """The EngineHealth implementation for sandboxes that need no engine. It never reports a failure."""

    def restart_count(self) -> int:
        """Return 0, because there is no engine that could restart."""
        return 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Return False, because there is no engine that could fail or restart."""
        return False

    async def recovered(self) -> None:
        """Return without waiting, because there is no engine that would have to recover."""


class Backend(Protocol):
    """The interface of a back end, which starts sandboxes."""

    def start(self, spec: MachineSpec, answer: Answer) -> AbstractAsyncContextManager[Sandbox]:
        """Start a sandbox when the ``async with`` block begins, and remove the sandbox when the block ends.

        ``answer`` is the function that answers the questions of the task program in the sandbox.
        """
