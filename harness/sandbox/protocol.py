"""The interfaces of a sandbox (one machine with a shell, observed from outside) and of the back end that starts it.

``harness.sandbox.docker`` implements them with Docker containers, ``tests/fake_sandbox.py`` in memory for tests that
need no Docker. Both pass the same contract (tests/contracts/sandbox.py).
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
    """One machine's resource limits. The defaults are those of the published environment where it names them."""

    memory_mb: int = 256
    cpus: float = 0.5
    processes: int = 256
    open_files: int = 1024
    file_mb: int = 256
    disk_mb: int = 1024
    files: int = 100_000


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The image that a run needs: a shipped or a user's image with the task program and the kill switch added.

    ``name`` is a folder of sandbox_images/, or with ``of_user`` the tag of the user's own image, which contains its own
    kill switch.
    """

    name: str
    task: Task
    mechanism: Mechanism
    of_user: bool = False


class MachineSpec(Frozen):
    """The machine to start: its image's tag, the agent's user in it, and the paths watched for file events.

    ``programs`` are the watched paths at which the image has a compiled program: it can only be started by executing
    it, so processes that read it are not recorded.
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
    """A watched path's state right after a file event; ``at`` is on the monotonic clock, in seconds.

    ``moved_to`` is the file's new path where it was renamed within its folder; ``came_from`` is its old path where it
    was renamed to this one, "" where the old path isn't watched. ``writing``: a process was still writing to the file,
    so its content may be incomplete. ``started``: a process was about to run the file in this state.
    """

    at: float
    state: FileState
    moved_to: str | None = None
    came_from: str | None = None
    writing: bool = False
    started: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a machine's files at one moment: ``states`` of the requested paths, and what else is known.

    ``written`` are the regular files that the machine has written or moved, by identity. ``events`` are the file events
    since the snapshot before, empty where the host gets none. ``one_process`` are the paths where each process that
    removed the file also put one there, as an editor does; None where the host can't attribute events to processes.
    """

    states: tuple[FileState, ...]
    written: tuple[FileState, ...] = ()
    events: tuple[FileEvent, ...] = ()
    one_process: frozenset[str] | None = None


class Sandbox(Protocol):
    """One machine, from its start until it is removed; its files can still be read after it went down."""

    @property
    def watch(self) -> str:
        """Name how this sandbox is observed (events or snapshots only, and by what means), for the trial's record."""

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a new login shell as the agent's user."""

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Take a snapshot of the machine, up or down; each file event is returned once."""

    async def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the watched files so far; None where the host can't observe them."""

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of each path, up or down, in the order given."""

    async def changed_paths(self) -> tuple[str, ...]:
        """List every path that differs from the image."""

    async def put(self, path: str, content: bytes) -> None:
        """Write a file, owned by root with mode 0644, into the machine from outside."""

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` as root with a clean environment, on the lab's behalf."""

    async def stop(self) -> None:
        """End the machine from outside; no process inside can prevent that."""

    async def wait_down(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` until the machine is down; return whether it is.

        Time in which the busy host didn't let the machine run doesn't count.
        """

    async def machine(self) -> Machine:
        """Ask the engine for the machine's state now. Raises EngineError where the engine doesn't answer."""


class EngineHealth(Protocol):
    """The health of the engine that runs the sandboxes: restarts, outages and recovery."""

    def restart_count(self) -> int:
        """Return how often the engine has restarted so far."""

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether the engine has restarted since ``restart_count`` gave ``restarts``, or doesn't answer now.

        ``stopping``: the engine stopped a machine, which may be the first step of its own shutdown, so wait that long
        before answering no.
        """

    async def recovered(self) -> None:
        """Wait until trials can run again. Raises EngineError where the engine doesn't recover."""


class AlwaysUp:
    """The health of machines that need no engine, such as those in memory: never lost."""

    def restart_count(self) -> int:
        """Return 0: there is nothing that could restart."""
        return 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Return False: these machines have no engine that could be lost."""
        return False

    async def recovered(self) -> None:
        """Return at once: there is no engine to wait for."""


class Backend(Protocol):
    """Starts sandboxes."""

    def start(self, spec: MachineSpec, answer: Answer) -> AbstractAsyncContextManager[Sandbox]:
        """Start a machine and remove it when the block ends, even by an error; ``answer`` serves its task program."""
