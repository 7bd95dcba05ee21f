"""What a sandbox is to the rest of the lab: one machine with a shell, looked at from outside.

``harness.sandbox.docker`` makes real ones from Docker containers; ``tests/fake_sandbox.py`` makes one in memory for tests
of everything that isn't Docker. Both pass the same contract (tests/contracts/sandbox.py).
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
    """What one machine may use. The defaults are the published environment's, where it names them."""

    memory_mb: int = 256
    cpus: float = 0.5
    processes: int = 256
    open_files: int = 1024
    file_mb: int = 256
    disk_mb: int = 1024
    files: int = 100_000


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Which image a run needs: the task's program and the kill switch, on a shipped image or on one of the user's.

    ``name`` is a folder of sandbox_images/, or with ``of_user`` the tag of the user's own image, which brings its own
    kill switch.
    """

    name: str
    task: Task
    mechanism: Mechanism
    of_user: bool = False


class MachineSpec(Frozen):
    """Which machine to start: an image's tag, who the agent is in it, and which paths are watched for events.

    ``programs`` are those of the watched paths at which the image has a compiled program: to run one is to execute it,
    and who only reads it is of no interest.
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
    """A watched path's state right after something happened to it; ``at`` is on the monotonic clock, in seconds.

    ``moved_to`` is the path the file was given when it was renamed within its folder; ``came_from`` the one it had
    before it was renamed to this one, "" where that isn't watched. ``writing``: somebody was still writing, so its
    content may have been half of what it was to become. ``started``: somebody was about to run it as it stood.
    """

    at: float
    state: FileState
    moved_to: str | None = None
    came_from: str | None = None
    writing: bool = False
    started: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a machine: what stands at the paths asked for, and what there was besides.

    ``strays`` are the regular files that the machine has written or moved, by identity; ``glimpses`` what happened to
    the watched paths since the look before, none where the host is told of no events. ``alone`` are the paths that no
    process took a file from without putting one there itself, None where the host can't tell.
    """

    states: tuple[FileState, ...]
    written: tuple[FileState, ...] = ()
    events: tuple[FileEvent, ...] = ()
    one_process: frozenset[str] | None = None


class Sandbox(Protocol):
    """One running machine, until it goes down."""

    @property
    def watch(self) -> str:
        """Which guarantee the looks of this sandbox give: goes into the record."""

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a fresh login shell as the agent."""

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Look at the machine, up or down; glimpses are handed over once."""

    async def accesses(self) -> tuple[FileAccess, ...] | None:
        """Who opened the watched files so far, on the monotonic clock; None where the host can't tell."""

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """What stands at each path; works while the machine is down, too."""

    async def changed_paths(self) -> tuple[str, ...]:
        """Every path that differs from the image."""

    async def put(self, path: str, content: bytes) -> None:
        """Put a root-owned file (0644) into the machine from outside."""

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` as root with a clean environment: the lab's own doing."""

    async def stop(self) -> None:
        """Have the engine end the machine: the lab's own doing, which no process inside can prevent."""

    async def wait_down(self, limit_s: float) -> bool:
        """Wait until the machine is down, at most ``limit_s`` of its own time; whether it is.

        Where the host is so busy that the lab itself gets to run late, so does the machine, and is given more.
        """

    async def machine(self) -> Machine:
        """What the engine says about it now. Raises EngineError when the engine doesn't say."""


class EngineHealth(Protocol):
    """What is known of the engine that the sandboxes are on, beside each sandbox."""

    def restart_count(self) -> int:
        """Which of its lives the engine is in: another number after each restart."""

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether the engine was restarted since that life, or is away now.

        ``stopping``: it stopped a machine, as it does before it ends in order: then it is given the time for that.
        """

    async def recovered(self) -> None:
        """Wait until trials can run again. Raises EngineError where they can't."""


class AlwaysUp:
    """The lifeline of machines that are on no engine."""

    def restart_count(self) -> int:
        """The only one."""
        return 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Never."""
        return False

    async def recovered(self) -> None:
        """At once."""


class Backend(Protocol):
    """Where sandboxes come from."""

    def start(self, spec: MachineSpec, answer: Answer) -> AbstractAsyncContextManager[Sandbox]:
        """Start a machine; leaving the block removes it, whatever happened. ``answer`` answers its questions."""
