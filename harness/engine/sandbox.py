"""A sandbox made of one Docker container."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from posixpath import dirname
from typing import Any, ParamSpec, TypeVar

import docker
import docker.errors
import requests.exceptions
from docker.models.containers import Container
from docker.types import LogConfig, Ulimit

from harness.console import Answer, Command, CommandResult, Console
from harness.engine.events import Told, file_events
from harness.engine.guard import DiskGuard, Guarded
from harness.engine.look import ArchiveLook, LayersLook, Look
from harness.engine.owner import owner_labels
from harness.errors import EngineError
from harness.evidence import FileState, Machine, Opening
from harness.sandbox import Looked, MachineSpec

P = ParamSpec("P")
T = TypeVar("T")

LOOK = "OFFSWITCH_LOOK"  # "archive": look through the engine even where the host could, as on a host without rights
CONSOLE = "/usr/sbin/console"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_LIMIT_S = 30.0
DEATH_LIMIT_S = 10.0
KILLED = 128 + 9
# What root needs to work in a container, less what could reach beyond it. An agent that is not root has none of
# these; the console needs the last three.
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETUID", "SETGID", "KILL"]


async def call(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the blocking SDK on a thread, with its errors made ours: the only such place."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except docker.errors.APIError as error:
        raise EngineError(f"the Docker engine refused: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise EngineError(f"the Docker engine does not answer: {error}") from error


@dataclass(frozen=True)
class DockerSandboxes:
    """Starts containers on one engine."""

    client: docker.DockerClient
    disks: DiskGuard = field(default_factory=DiskGuard)

    @asynccontextmanager
    async def start(self, spec: MachineSpec, answer: Answer) -> AsyncIterator[DockerSandbox]:
        """Start a container and its console; leaving the block removes it, whatever happened."""
        container = await self._create(spec)
        try:
            console = await _attach(container, answer)
            try:
                await call(container.start)
                await console.ready(START_LIMIT_S)
                await call(container.reload)
                with _watching(container, spec) as (look, told):
                    async with self._bounded(container, spec, look) as disk:
                        yield DockerSandbox(container, console, spec, look, told, disk)
            finally:
                await console.close()
        finally:
            await asyncio.shield(_remove(container))

    @asynccontextmanager
    async def _bounded(self, container: Container, spec: MachineSpec, look: Look) -> AsyncIterator[Guarded | None]:
        """Bound the disk that the container may fill, where its layers are on this host."""
        if not isinstance(look, LayersLook):
            yield None
            return

        async def end() -> None:
            with suppress(EngineError):  # it may be gone by itself
                await call(container.kill)

        limits, first = spec.limits, container.attrs["State"]["Pid"]
        disk = Guarded(look.upper, first, limits.disk_mb << 20, limits.files, end)
        async with self.disks.guarding(disk):
            yield disk

    async def _create(self, spec: MachineSpec) -> Container:
        """Create a container; cancelled meanwhile, wait for it and remove it."""
        creating = asyncio.ensure_future(call(self.client.containers.create, **_container_options(spec)))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            with suppress(EngineError):
                await _remove(await creating)
            raise


async def _remove(container: Container) -> None:
    with suppress(EngineError):  # a leftover is found by its label at the next start
        await call(container.remove, force=True, v=True)


def _container_options(spec: MachineSpec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "image": spec.image,
        "labels": {"offswitch.run": spec.run_id, "offswitch.trial": str(spec.trial), **owner_labels()},
        "hostname": "sandbox",
        "command": [CONSOLE, str(spec.uid)],
        "user": "0:0",
        "stdin_open": True,
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "cap_add": CAPABILITIES,
        "security_opt": ["no-new-privileges"],
        "mem_limit": f"{limits.memory_mb}m",
        "memswap_limit": f"{limits.memory_mb}m",
        "nano_cpus": int(limits.cpus * 1e9),
        "pids_limit": limits.processes,
        "ulimits": [
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="fsize", soft=limits.file_mb << 20, hard=limits.file_mb << 20),
            Ulimit(name="core", soft=0, hard=0),
        ],
        "shm_size": "8m",
        "log_config": LogConfig(type="none"),
    }


async def _attach(container: Container, answer: Answer) -> Console:
    """Attach to the streams of the container's first process, before it runs."""
    streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    stream = await call(container.attach_socket, params=streams)
    reader, writer = await asyncio.open_connection(sock=_plain_socket(stream), limit=1 << 20)
    return Console(reader, writer, answer)


@contextmanager
def _watching(container: Container, spec: MachineSpec) -> Iterator[tuple[Look, Told | None]]:
    """The best look this host can have, and the events of the watched paths where it is told of them."""
    driver = container.attrs["GraphDriver"]
    look = None if os.environ.get(LOOK) == "archive" else LayersLook.of(driver)
    if look is None:
        yield ArchiveLook(container), None
        return
    merged, first = driver["Data"]["MergedDir"], container.attrs["State"]["Pid"]
    with file_events().watching(look, merged, spec.watched, container=str(container.id), first=first) as told:
        yield look, told


@dataclass
class DockerSandbox:
    """One container, its console and its look."""

    container: Container
    console: Console
    spec: MachineSpec
    files: Look
    told: Told | None
    disk: Guarded | None = None
    _events_lost: bool = field(default=False, init=False)
    _stopped_by_lab: bool = field(default=False, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    @property
    def watch(self) -> str:
        """Which guarantee the looks of this sandbox give."""
        if self.told is None:
            return f"snapshots/{self.files.guarantee}"
        return f"events{' (some lost)' if self._events_lost else ''}/{self.files.guarantee}"

    async def look(self, paths: Iterable[str]) -> Looked:
        """Look at the machine: first at what happened, then at what is."""
        return await call(self._look, tuple(paths))

    def _look(self, paths: tuple[str, ...]) -> Looked:
        glimpses, lost = self.told.glimpses() if self.told else ((), False)
        self._events_lost = self._events_lost or lost
        return Looked(states=self.files.states(paths), strays=self.files.elsewhere(), glimpses=glimpses)

    async def openings(self) -> tuple[Opening, ...] | None:
        """Who opened the watched files so far, or None where nobody could be held."""
        return await call(self.told.openings) if self.told else None

    async def run(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` in a fresh login shell as the agent."""
        spec = self.spec
        env = (
            f"PATH={PATH}",
            f"HOME={spec.home}",
            f"USER={spec.user}",
            f"LOGNAME={spec.user}",
            "LANG=C.UTF-8",
        )
        argv = ("/bin/bash", "--login", "-c", cmd)
        return await self.console.run(Command(argv, spec.uid, spec.gid, spec.workdir, env, limit_s))

    async def act(self, cmd: str, limit_s: float) -> CommandResult:
        """Run ``cmd`` as root with a clean environment."""
        return await self.console.run(Command(("/bin/sh", "-c", cmd), 0, 0, "/", (f"PATH={PATH}",), limit_s))

    async def stop(self) -> None:
        """Have the engine end the container."""
        self._stopped_by_lab = True
        await call(self.container.kill)

    async def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """What stands at each path."""
        return await call(self.files.states, tuple(paths))

    async def changed_paths(self) -> tuple[str, ...]:
        """Every path that differs from the image."""
        return await call(self.files.changed_paths)

    async def put(self, path: str, content: bytes) -> None:
        """Put a root-owned file into the container through the engine, which keeps within its root."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo(path.rsplit("/", 1)[1])
            member.size, member.mode, member.mtime = len(content), 0o644, int(time.time())
            archive.addfile(member, io.BytesIO(content))
        await call(self.container.put_archive, dirname(path), packed.getvalue())

    async def wait_down(self, limit_s: float) -> bool:
        """Wait until the engine says the container no longer runs, at most ``limit_s``; whether it does.

        The console is the container's first process, so the end of its stream is the machine going down, and comes
        before the engine knows: then the engine is given ``DEATH_LIMIT_S`` to say so. Its word is what counts.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self.console.lost.wait(), limit_s)
        deadline = time.monotonic() + (DEATH_LIMIT_S if self.console.lost.is_set() else 0)
        while True:
            await call(self.container.reload)
            if not self.container.attrs["State"]["Running"]:
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)

    async def machine(self) -> Machine:
        """What the engine says about the container now."""
        await call(self.container.reload)
        state = self.container.attrs["State"]
        down = not state["Running"]
        ours = self._stopped_by_lab or self._disk_full
        return Machine(
            down=down,
            exit_code=state["ExitCode"] if down else None,
            oom_killed=bool(state["OOMKilled"]),
            disk_full=self._disk_full,
            stopped_by_lab=down and self._stopped_by_lab,
            stopped_outside=down and not ours and (self._killed_outside(state) or await self._stopped_outside()),
        )

    @property
    def _disk_full(self) -> bool:
        return self.disk is not None and self.disk.full

    def _killed_outside(self, state: dict[str, Any]) -> bool:
        """Whether the first process was killed by a signal that nothing inside can send it (pid_namespaces(7))."""
        return state["ExitCode"] == KILLED and not state["OOMKilled"] and self.spec.uid != 0

    async def _stopped_outside(self) -> bool:
        """Whether somebody asked the engine to stop or kill the container: its own death leaves no such event."""
        since = int(time.time() - (time.monotonic() - self._started)) - 2
        filters = {"container": self.container.id, "event": ["kill", "stop", "pause"]}

        def events() -> list[dict[str, Any]]:
            assert self.container.client is not None
            # The engine takes fractions of a second, the SDK's types don't know; a later ``until`` would block.
            until: Any = f"{time.time():.3f}"
            return list(self.container.client.api.events(since, until, filters, decode=True))

        return bool(await call(events))


def _plain_socket(stream: Any) -> socket.socket:
    """The socket under what the SDK hands out; an engine behind TLS or ssh has none that asyncio can use."""
    plain = getattr(stream, "_sock", stream)
    if not isinstance(plain, socket.socket) or type(plain) is not socket.socket:
        raise EngineError("an engine over TLS or ssh is not supported yet: forward its socket with ssh -L")
    own = plain.dup()
    own.setblocking(False)
    response = getattr(stream, "_response", None)  # it holds the socket, and closes it
    (response or stream).close()
    plain.close()
    return own
