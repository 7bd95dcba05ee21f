"""Ends each container that holds more bytes or files than its disk limits allow.

Docker itself can limit a container's disk use only on file systems with project quotas. So one asyncio task of the lab
checks the free space of the host's file system four times a second. The task measures each container's disk use only if
enough free space was lost to bring a container near its limit, or if the last measurement was some seconds ago. A
container over its limit is killed through the engine.

Between two checks, a container can write only as much as its CPU limit and the maximum file size allow. System calls
that reserve much space at once are refused (sandbox_images/console/console.c).
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.process.environment import without_keys
from harness.sandbox.observe.procfs import text_of

CHECK_INTERVAL_S = 0.25
FULL_CHECK_INTERVAL_S = 5.0  # after which all containers are added up, whatever the free space is
IGNORED_BYTES = 16 << 20  # of lost free space
IGNORED_FILES = 2_000
NEAR_LIMIT = 0.5  # this fraction of a limit or more is near it
BLOCK_BYTES = 512
DU_TIMEOUT_S = 60.0
MAX_PROCESSES = 4_096
log = logging.getLogger(__name__)


@dataclass(eq=False)
class BoundedContainer:
    """One container with its disk limits and its disk use.

    ``upper`` is the folder of the container's writable overlay layer. ``first`` is the pid of the container's first
    process. ``end`` ends the container. ``full`` is True once the container was found over a limit. ``bytes`` and
    ``files`` are the disk use when it was last measured.
    """

    upper: Path
    first: int
    max_bytes: int
    max_files: int
    end: Callable[[], Awaitable[None]]
    full: bool = False
    bytes: int = 0
    files: int = 0

    def may_be_near(self, lost: tuple[int, int]) -> bool:
        """Whether the container may be near a limit, if all the lost free space is counted as its own use.

        ``lost`` is how many free bytes and how many free files the host's file system has lost since the container's
        disk use was last measured. Small losses are ignored.
        """
        lost_bytes, lost_files = lost
        near_bytes = lost_bytes > IGNORED_BYTES and self.bytes + lost_bytes > NEAR_LIMIT * self.max_bytes
        return near_bytes or (lost_files > IGNORED_FILES and self.files + lost_files > NEAR_LIMIT * self.max_files)


@dataclass
class DiskQuota:
    """Enforces the disk limits of all containers of this process in one asyncio task. Failed checks are repeated."""

    _bounded: list[BoundedContainer] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None
    _free: tuple[int, int] | None = None  # the largest free space (bytes, files) since the last full check
    _checked_at: float = 0.0  # when the last full check was, on the monotonic clock
    _failure: str = ""  # of the last pass: a lasting one is logged once

    @asynccontextmanager
    async def enforced(self, container: BoundedContainer) -> AsyncIterator[None]:
        """Enforce the disk limits of ``container`` while the ``with`` block runs."""
        self._bounded.append(container)
        if self._task is None:
            self._task = asyncio.create_task(self._enforce())
        try:
            yield
        finally:
            self._bounded.remove(container)
            if not self._bounded:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _enforce(self) -> None:
        self._free, self._checked_at = None, time.monotonic()
        while True:
            try:
                await self._check()
            except subprocess.TimeoutExpired:
                log.warning("du took longer than %g s to add up the containers' disk use: trying again", DU_TIMEOUT_S)
            except Exception as error:  # whatever it is, the other containers must stay bounded
                if repr(error) != self._failure:
                    log.exception("a check of the containers' disk use failed: trying again")
                self._failure = repr(error)
            else:
                self._failure = ""
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _check(self) -> None:
        """Check the free space, measure the containers' disk use if necessary, and end each container over a limit."""
        free = self._free_space()
        if free is None:
            return
        before = self._free or free
        lost = before[0] - free[0], before[1] - free[1]
        containers = [each for each in self._bounded if not each.full]
        is_due = time.monotonic() - self._checked_at >= FULL_CHECK_INTERVAL_S
        if not is_due and not any(each.may_be_near(lost) for each in containers):
            self._free = max(before[0], free[0]), max(before[1], free[1])
            return
        for container in await asyncio.to_thread(over_quota, containers):
            container.full = True
            await container.end()
        self._free, self._checked_at = free, time.monotonic()

    def _free_space(self) -> tuple[int, int] | None:
        """Return how many more bytes and files fit on the file system that holds the containers' layers.

        Return None if no container's layer exists any more.
        """
        for container in self._bounded:
            with suppress(FileNotFoundError):  # the layer may vanish at any moment: another one serves as well
                found = os.statvfs(container.upper)
                return found.f_bfree * found.f_frsize, found.f_ffree
        return None


def over_quota(containers: list[BoundedContainer]) -> list[BoundedContainer]:
    """Measure the disk use of each container, and return the containers that are over a limit.

    The disk use is that of the container's overlay layer and of the deleted files that its processes still hold open.
    Raises subprocess.TimeoutExpired if du takes too long, and OSError if du can't be started.
    """
    folders = [each.upper for each in containers]
    sizes, counts = _du(folders, "--block-size=1"), _du(folders, "--inodes")
    for each in containers:
        deleted = {(found.st_dev, found.st_ino): found.st_blocks * BLOCK_BYTES for found in _deleted_files(each.first)}
        each.bytes = sizes.get(each.upper, 0) + sum(deleted.values())
        each.files = counts.get(each.upper, 0) + len(deleted)
    return [each for each in containers if each.bytes > each.max_bytes or each.files > each.max_files]


def _du(folders: list[Path], unit: str) -> dict[Path, int]:
    """Return the total that du counts in each folder. ``unit`` is the option of du that selects bytes or files."""
    if not folders:
        return {}
    command = ["du", "--summarize", "--one-file-system", unit, *map(str, folders)]
    done = subprocess.run(
        command, env=without_keys(), capture_output=True, text=True, check=False, timeout=DU_TIMEOUT_S
    )
    counted = (line.partition("\t") for line in done.stdout.splitlines())  # du leaves out a folder that has vanished
    return {Path(folder): int(count) for count, _, folder in counted}


def _deleted_files(first: int) -> Iterator[os.stat_result]:
    """Yield the status of each deleted regular file that the container's processes still hold open or mapped in memory.

    ``first`` is the pid of the container's first process.
    """
    for pid in processes_of(first):
        for place in ("fd", "map_files"):
            yield from _without_name(Path(f"/proc/{pid}/{place}"))


def processes_of(first: int) -> Iterator[int]:
    """Yield the pid ``first`` of a container's first process, and the pids of all its descendants."""
    waiting, known = [first], 0
    while waiting and known < MAX_PROCESSES:
        pid = waiting.pop()
        known += 1
        yield pid
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    waiting += map(int, text_of(f"/proc/{pid}/task/{task}/children", records=True).split())


def _without_name(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of each deleted regular file in ``folder``.

    ``folder`` is a folder of /proc that lists a process's open files or mapped files.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found = entry.stat()
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    yield found
