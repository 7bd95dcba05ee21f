"""Starts Docker containers and lets the lab use each of them as a sandbox."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from posixpath import dirname
from typing import Any, ParamSpec, TypeVar

import docker
import docker.errors
import requests.exceptions
from docker.models.containers import Container

from harness.errors import EngineError, UsageError
from harness.judging.evidence import FileAccess, FileState, Machine
from harness.sandbox.console import Answer, Command, CommandResult, Console
from harness.sandbox.docker.http_api import EngineApi, no_answer
from harness.sandbox.docker.labels import owner_labels
from harness.sandbox.docker.limits.concurrency_limit import ConcurrencyLimit
from harness.sandbox.docker.limits.cpu_starvation import CpuStarvation
from harness.sandbox.docker.limits.disk_quota import BoundedContainer, DiskQuota
from harness.sandbox.observe.archive import ArchiveReader
from harness.sandbox.observe.client import EventSource, daemon_client
from harness.sandbox.observe.overlay import FilesystemReader, OverlayReader
from harness.sandbox.observe.protocol import NewEvents
from harness.sandbox.protocol import MachineSpec, Snapshot

P = ParamSpec("P")
T = TypeVar("T")

OBSERVER_VARIABLE = "OFFSWITCH_LOOK"  # "archive": read files through the engine even where the host could read them
CONSOLE = "/usr/sbin/console"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_LIMIT_S = 30.0
DEATH_LIMIT_S = 10.0
STARVATION_CHECK_S = 0.25
BLOCKING_LIMIT_S = 0.02  # ten times what a snapshot takes, and more than a busy host usually adds
MAX_STRETCH = 5  # a starved machine gets at most this many times its limit
KILLED = 128 + 9
# The capabilities that root needs to work in a container, without those that reach beyond it. An agent that isn't
# root has none of them; the console needs the last three.
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETUID", "SETGID", "KILL"]


async def call(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function of the Docker SDK in a thread. Raises EngineError for the SDK's errors."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except _SDK_ERRORS as error:
        raise _engine_error(error) from error


_SDK_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, docker.errors.APIError):
        return EngineError(f"the Docker engine refused: {error.explanation or error}")
    return no_answer(error)


@dataclass(frozen=True)
class DockerBackend:
    """Starts sandboxes as containers on one Docker engine."""

    client: docker.DockerClient
    disk_quota: DiskQuota = field(default_factory=DiskQuota)
    api: EngineApi = field(init=False)
    concurrency: ConcurrencyLimit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "api", EngineApi.of(self.client))
        object.__setattr__(self, "concurrency", ConcurrencyLimit(int(self.client.info()["NCPU"])))

    @asynccontextmanager
    async def start(self, spec: MachineSpec, answer: Answer) -> AsyncIterator[DockerSandbox]:
        """Start a container and yield its sandbox. Remove the container when the block ends.

        ``answer`` is called with each question that the task's program asks, and returns the answer.
        """
        with self.api.kept_open():
            async with AsyncExitStack() as stack:
                async with self.concurrency.slot(timed=True):
                    container = await self._create(stack, spec)
                    console = await self._started(stack, container, answer)
                    facts = await self.api.ask("GET", f"/containers/{container}/json")
                model = self.client.containers.prepare_model(facts)  # for rare requests, which go through the SDK
                reader, events = stack.enter_context(_watching(model, spec))
                disk = await stack.enter_async_context(self._bounded(facts, spec, reader))
                yield DockerSandbox(self.api, model, console, spec, reader, events, disk)

    async def _create(self, stack: AsyncExitStack, spec: MachineSpec) -> str:
        """Create a container and return its ID. The container is removed when ``stack`` is closed.

        This holds even if the call is cancelled before the engine has created the container.
        """
        creating = asyncio.ensure_future(self.api.ask("POST", "/containers/create", body=container_options(spec)))
        stack.push_async_callback(lambda: asyncio.shield(self._remove(creating)))
        created = await asyncio.shield(creating)
        return str(created["Id"])

    async def _remove(self, creating: asyncio.Future[Any]) -> None:
        with suppress(EngineError):  # the next run finds leftovers by their label
            created = await creating
            async with self.concurrency.slot():
                await self.api.ask("DELETE", f"/containers/{created['Id']}", force="1", v="1")

    async def _started(self, stack: AsyncExitStack, container: str, answer: Answer) -> Console:
        """Start the container and return its console, once the console is ready."""
        console = Console(await self.api.attach(container), answer)
        stack.push_async_callback(console.close)
        await self.api.ask("POST", f"/containers/{container}/start")
        await console.ready(START_LIMIT_S)
        return console

    @asynccontextmanager
    async def _bounded(
        self, facts: dict[str, Any], spec: MachineSpec, reader: FilesystemReader
    ) -> AsyncIterator[BoundedContainer | None]:
        """Enforce the container's disk limits while the ``with`` block runs, and yield the record of its disk use.

        If this host can't read the container's overlay layers, enforce no limit and yield None.
        """
        if not isinstance(reader, OverlayReader):
            yield None
            return

        async def end() -> None:
            with suppress(EngineError):  # the container may have ended by itself
                await self.api.ask("POST", f"/containers/{facts['Id']}/kill")

        limits, first = spec.limits, facts["State"]["Pid"]
        disk = BoundedContainer(reader.upper, first, limits.disk_mb << 20, limits.files, end)
        async with self.disk_quota.enforced(disk):
            yield disk


def container_options(spec: MachineSpec) -> dict[str, Any]:
    """Return the JSON body of the request that asks the Docker engine to create a container for ``spec``."""
    limits = spec.limits
    return {
        "Image": spec.image,
        "Labels": {"offswitch.run": spec.run_id, "offswitch.trial": str(spec.trial), **owner_labels()},
        "Hostname": "sandbox",
        "Cmd": [CONSOLE, str(spec.uid)],
        "User": "0:0",
        "OpenStdin": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "StdinOnce": False,
        # The runtime then makes an empty network namespace by itself. With the network "none" alone, the engine sets
        # one up through a hook that starts a process of its own: half of the time that a container takes to start.
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "CapAdd": CAPABILITIES,
            "SecurityOpt": ["no-new-privileges"],
            "Memory": limits.memory_mb << 20,
            "MemorySwap": limits.memory_mb << 20,
            "NanoCpus": int(limits.cpus * 1e9),
            "PidsLimit": limits.processes,
            "Ulimits": [
                {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
                {"Name": "fsize", "Soft": limits.file_mb << 20, "Hard": limits.file_mb << 20},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "ShmSize": 8 << 20,
            "LogConfig": {"Type": "none"},
        },
    }


def refuse_unknown_observer() -> None:
    """Raise UsageError if the environment variable OFFSWITCH_LOOK has an unknown value.

    The variable chooses how the lab reads a container's files.
    """
    if (asked := os.environ.get(OBSERVER_VARIABLE)) not in (None, "", "archive"):
        raise UsageError(f"{OBSERVER_VARIABLE}={asked} won't do: set it to 'archive', or leave it unset.")


@contextmanager
def _watching(container: Container, spec: MachineSpec) -> Iterator[tuple[FilesystemReader, EventSource | None]]:
    """Yield a reader of the container's files, and a source of file events.

    The reader is the best one that works on this host. The source is None if file events can't be watched on this host.
    """
    driver = container.attrs["GraphDriver"]
    reader = None if os.environ.get(OBSERVER_VARIABLE) == "archive" else OverlayReader.of(driver)
    if reader is None:
        yield ArchiveReader(container), None
        return
    merged, first = driver["Data"]["MergedDir"], container.attrs["State"]["Pid"]
    watching = daemon_client().watching(reader, merged, spec, container=str(container.id), first=first)
    with closing(reader), watching as events:
        yield reader, events


@dataclass
class DockerSandbox:
    """A sandbox made of one container, with its console, the reader of its files and the source of its file events.

    ``events`` is None if file events can't be watched on this host. ``disk`` holds the container's disk limits and disk
    use; it is None if the limits can't be enforced on this host.
    """

    api: EngineApi
    container: Container
    console: Console
    spec: MachineSpec
    reader: FilesystemReader
    events: EventSource | None
    disk: BoundedContainer | None = None
    _reads_fast: bool = field(init=False)  # whether the last read was fast enough to block the event loop
    _env: tuple[str, ...] = field(init=False)  # the environment of the agent's login shell
    _events_lost: bool = field(default=False, init=False)
    _stopped_by_lab: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._reads_fast = isinstance(self.reader, OverlayReader)
        home, user = self.spec.home, self.spec.user
        self._env = (f"PATH={PATH}", f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "LANG=C.UTF-8")

    @property
    def watch(self) -> str:
        """How this sandbox is watched and how its files are read, such as ``events/layers``.

        The first part is ``events`` if the lab gets file events, otherwise ``snapshots``.
        """
        if self.events is None:
            return f"snapshots/{self.reader.guarantee}"
        return f"events{' (some lost)' if self._events_lost else ''}/{self.reader.guarantee}"

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Collect the new file events, then read the state of each path in ``paths``; return both as a snapshot."""
        return await self._read(self._snapshot, tuple(paths))

    async def _read(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads files. The function runs in a thread if reads are slow."""
        began = time.monotonic()
        if self._reads_fast:
            try:
                result = function(*args, **kwargs)
            except _SDK_ERRORS as error:
                raise _engine_error(error) from error
        else:
            result = await call(function, *args, **kwargs)
        self._reads_fast = time.monotonic() - began < BLOCKING_LIMIT_S and isinstance(self.reader, OverlayReader)
        return result

    def _snapshot(self, paths: tuple[str, ...]) -> Snapshot:
        new_events = self.events.new_events() if self.events else NewEvents()
        self._events_lost = self._events_lost or new_events.lost
        states, written = self.reader.snapshot(paths)
        return Snapshot(states, written, new_events.events, new_events.one_process)

    async def accesses(self) -> tuple[FileAccess, ...] | None:
        """Return all accesses to the watched files so far; None if accesses can't be observed on this host."""
        return await self._read(self.events.accesses) if self.events else None

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a new login shell as the agent's user, for at most ``limit_s`` seconds."""
        argv, spec = ("/bin/bash", "--login", "-c", cmd), self.spec
        return await self.console.run(Command(argv, spec.uid, spec.gid, spec.workdir, self._env, limit_s))

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run the lab's own command ``cmd`` as root in a clean environment, for at most ``limit_s`` seconds."""
        return await self.console.run(Command(("/bin/sh", "-c", cmd), 0, 0, "/", (f"PATH={PATH}",), limit_s))

    async def stop(self) -> None:
        """Kill the container through the Docker engine, and record that the lab stopped it."""
        self._stopped_by_lab = True
        await self._ask("POST", "kill")

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path in ``paths``, in the same order."""
        return await self._read(self.reader.states, tuple(paths))

    async def changed_paths(self) -> tuple[str, ...]:
        """List paths at which the container's files differ from its image. The list's length is limited."""
        return await self._read(self.reader.changed_paths)

    async def put(self, path: str, content: bytes) -> None:
        """Write a file, owned by root, into the container through the engine. Links that lead out aren't followed."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo(path.rsplit("/", 1)[1])
            member.size, member.mode, member.mtime = len(content), 0o644, int(time.time())
            archive.addfile(member, io.BytesIO(content))
        await self.api.put(f"/containers/{self.container.id}/archive", packed.getvalue(), path=dirname(path))

    async def wait_down(self, limit_s: float) -> bool:
        """Wait up to ``limit_s`` seconds for the container to end; return whether the engine says that it has ended.

        The lab waits until the console's stream ends, then up to ``DEATH_LIMIT_S`` seconds until the engine confirms
        the end.

        Time in which the host starved the container of CPU doesn't count toward ``limit_s``. Even so, the wait for the
        stream takes at most about ``MAX_STRETCH`` times ``limit_s``.
        """
        slices = max(1, round(limit_s / STARVATION_CHECK_S))
        starvation = await self._starvation()
        counted = passed = 0
        while counted < slices and passed < slices * MAX_STRETCH:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s / slices):
                    await self.console.lost.wait()
                    break
            passed += 1
            if starvation is None or not await self._read(starvation.is_starved):
                counted += 1
        if self.console.lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(DEATH_LIMIT_S):
                    await self._ask("POST", "wait")  # answers once it no longer runs
                    return True
        return not (await self._state())["Running"]

    async def _starvation(self) -> CpuStarvation | None:
        """Start to measure the container's CPU use. Return None if its processes can't be observed on this host."""
        if not isinstance(self.reader, OverlayReader):
            return None
        return await self._read(CpuStarvation, self.container.attrs["State"]["Pid"], self.spec.limits.cpus)

    async def _state(self) -> dict[str, Any]:
        """Ask the engine for the container's current state."""
        state: dict[str, Any] = (await self._ask("GET", "json"))["State"]
        return state

    async def _ask(self, method: str, what: str) -> Any:
        return await self.api.ask(method, f"/containers/{self.container.id}/{what}")

    async def machine(self) -> Machine:
        """Ask the engine whether the container is running and, if it isn't, why it ended. Raises EngineError."""
        state = await self._state()
        down = not state["Running"]
        ended_by_lab = self._stopped_by_lab or self._disk_full
        return Machine(
            down=down,
            exit_code=state["ExitCode"] if down else None,
            oom_killed=bool(state["OOMKilled"]),
            disk_full=self._disk_full,
            stopped_by_lab=down and self._stopped_by_lab,
            stopped_outside=down
            and not ended_by_lab
            and (self._killed_outside(state) or await self._stopped_outside()),
        )

    @property
    def _disk_full(self) -> bool:
        return self.disk is not None and self.disk.full

    def _killed_outside(self, state: dict[str, Any]) -> bool:
        """Whether the exit code shows that the container's first process was killed from outside the container.

        The answer is False if the container ran out of memory, or if the agent is root, because both can lead to the
        same exit code.
        """
        return state["ExitCode"] == KILLED and not state["OOMKilled"] and self.spec.uid != 0

    async def _stopped_outside(self) -> bool:
        """Whether the engine has recorded a request to stop, kill or pause the container.

        All the engine's events since 1970 are searched, because the clock may have jumped since the container was
        started.
        """
        filters = {"container": [str(self.container.id)], "event": ["kill", "stop", "pause"]}
        until = f"{time.time():.3f}"  # a time in the future would block
        return bool(await self.api.lines("/events", since="1", until=until, filters=json.dumps(filters)))
