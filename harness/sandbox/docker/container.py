"""Starts sandboxes as Docker containers, runs commands in them and observes their files."""

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
from harness.sandbox.observe.mountinfo import container_layers
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
    """Call a blocking function of the Docker SDK in a thread and return the result.

    Raises EngineError if the SDK raises an error.
    """
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
    """Starts each sandbox as a container on one Docker engine."""

    client: docker.DockerClient
    disk_quota: DiskQuota = field(default_factory=DiskQuota)
    api: EngineApi = field(init=False)
    concurrency: ConcurrencyLimit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "api", EngineApi.of(self.client))
        object.__setattr__(self, "concurrency", ConcurrencyLimit(int(self.client.info()["NCPU"])))

    @asynccontextmanager
    async def start(self, spec: MachineSpec, answer: Answer) -> AsyncIterator[DockerSandbox]:
        """Start a container, yield it as a sandbox, and remove the container when the ``with`` block ends.

        ``answer`` is a callback that receives each question from the task's program in the container and returns the
        reply as bytes.
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
        """Create a container and return its ID. Closing ``stack`` removes the container.

        The container is removed even if this call is cancelled while the engine is creating the container.
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
        """Start the container, wait until its console is ready, and return the lab's connection to the console.

        ``container`` is the container's ID. Closing ``stack`` closes the connection.
        """
        console = Console(await self.api.attach(container), answer)
        stack.push_async_callback(console.close)
        await self.api.ask("POST", f"/containers/{container}/start")
        await console.ready(START_LIMIT_S)
        return console

    @asynccontextmanager
    async def _bounded(
        self, facts: dict[str, Any], spec: MachineSpec, reader: FilesystemReader
    ) -> AsyncIterator[BoundedContainer | None]:
        """Enforce the container's disk limits while the ``with`` block runs, and yield the measured disk use.

        ``facts`` is the engine's description of the container. If this host can't read the container's overlay layers,
        the limits aren't enforced, and None is yielded.
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
    """Return the JSON body of the Docker API request that creates a container for ``spec``."""
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

    This variable selects how the lab reads a container's files.
    """
    if (asked := os.environ.get(OBSERVER_VARIABLE)) not in (None, "", "archive"):
        raise UsageError(f"{OBSERVER_VARIABLE}={asked} won't do: set it to 'archive', or leave it unset.")


@contextmanager
def _watching(container: Container, spec: MachineSpec) -> Iterator[tuple[FilesystemReader, EventSource | None]]:
    """Yield the best file reader that works on this host, and a source of file events.

    The source is None if this host can't observe file events.
    """
    first = container.attrs["State"]["Pid"]
    layers = None if os.environ.get(OBSERVER_VARIABLE) == "archive" else container_layers(first, str(container.id))
    reader = OverlayReader.of(layers) if layers else None
    if reader is None:
        yield ArchiveReader(container), None
        return
    root = os.path.join("/proc", str(first), "root", ".")  # not the link itself, which isn't followed
    watching = daemon_client().watching(reader, root, spec, container=str(container.id), first=first)
    with closing(reader), watching as events:
        yield reader, events


@dataclass
class DockerSandbox:
    """A sandbox that runs in one Docker container.

    ``reader`` reads the container's files. ``events`` is the source of file events, or None if this host can't observe
    them. ``disk`` records the container's disk limits and disk use, or is None if this host can't enforce the limits.
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
        """A text that says how this sandbox is observed, such as ``events/layers``.

        The first part is ``events`` or ``events (some lost)`` if the lab receives file events, otherwise ``snapshots``.
        The second part names the method for reading files, ``layers`` or ``archive``.
        """
        if self.events is None:
            return f"snapshots/{self.reader.guarantee}"
        return f"events{' (some lost)' if self._events_lost else ''}/{self.reader.guarantee}"

    async def snapshot(self, paths: Iterable[str]) -> Snapshot:
        """Collect new file events, read the state of each path in ``paths``, and return both as a snapshot."""
        return await self._read(self._snapshot, tuple(paths))

    async def _read(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads files, and return the function's result.

        The function runs in a thread if it may be slow, because a slow read would block the event loop.
        """
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
        """Return all accesses to the watched files so far.

        Returns None if this host can't observe accesses or if some accesses weren't recorded.
        """
        return await self._read(self.events.accesses) if self.events else None

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a new login shell as the agent's user, for at most ``limit_s`` seconds."""
        argv, spec = ("/bin/bash", "--login", "-c", cmd), self.spec
        return await self.console.run(Command(argv, spec.uid, spec.gid, spec.workdir, self._env, limit_s))

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run the lab's own command ``cmd`` as root in a clean environment, for at most ``limit_s`` seconds."""
        return await self.console.run(Command(("/bin/sh", "-c", cmd), 0, 0, "/", (f"PATH={PATH}",), limit_s))

    async def stop(self) -> None:
        """Kill the container through the Docker engine, and record that the lab stopped the container."""
        self._stopped_by_lab = True
        await self._ask("POST", "kill")

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path in ``paths``, in the same order."""
        return await self._read(self.reader.states, tuple(paths))

    async def changed_paths(self) -> tuple[str, ...]:
        """Return the paths at which the container's files differ from those of its image, at most ``LISTED_PATHS``."""
        return await self._read(self.reader.changed_paths)

    async def put(self, path: str, content: bytes) -> None:
        """Write a file into the container through the engine. The file is owned by root.

        Symbolic links in ``path`` can't direct the write to a place outside the container.
        """
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo(path.rsplit("/", 1)[1])
            member.size, member.mode, member.mtime = len(content), 0o644, int(time.time())
            archive.addfile(member, io.BytesIO(content))
        await self.api.put(f"/containers/{self.container.id}/archive", packed.getvalue(), path=dirname(path))

    async def wait_down(self, limit_s: float) -> bool:
        """Wait for the container to end, and return whether it has ended.

        The method waits up to ``limit_s`` seconds for the end of the console's stream. Time in which the host starves
        the container of CPU isn't counted, but the wait takes at most about ``MAX_STRETCH`` times ``limit_s``. If the
        stream has ended, the method waits up to ``DEATH_LIMIT_S`` more seconds for the engine to confirm that the
        container has ended.
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
        """Return an object that detects when the host starves the container of CPU.

        Returns None if this host can't observe the container's processes.
        """
        if not isinstance(self.reader, OverlayReader):
            return None
        return await self._read(CpuStarvation, self.container.attrs["State"]["Pid"], self.spec.limits.cpus)

    async def _state(self) -> dict[str, Any]:
        """Return the container's current state, as reported by the engine."""
        state: dict[str, Any] = (await self._ask("GET", "json"))["State"]
        return state

    async def _ask(self, method: str, what: str) -> Any:
        return await self.api.ask(method, f"/containers/{self.container.id}/{what}")

    async def machine(self) -> Machine:
        """Return whether the container has ended and, if so, why.

        Raises EngineError if the engine doesn't answer.
        """
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
        """Return whether the exit code in ``state`` shows that the container's first process was killed from outside.

        Returns False if the container ran out of memory or if the agent is root, because each of these can cause the
        same exit code.
        """
        return state["ExitCode"] == KILLED and not state["OOMKilled"] and self.spec.uid != 0

    async def _stopped_outside(self) -> bool:
        """Return whether the engine has recorded a request to stop, kill or pause the container.

        The search covers all of the engine's events since 1970, because the clock may have jumped since the container's
        start.
        """
        filters = {"container": [str(self.container.id)], "event": ["kill", "stop", "pause"]}
        until = f"{time.time():.3f}"  # a time in the future would block
        return bool(await self.api.lines("/events", since="1", until=until, filters=json.dumps(filters)))
