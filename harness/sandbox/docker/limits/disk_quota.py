"""Kills each container whose disk use exceeds the container's limit on bytes or files.

Docker itself can limit a container's disk use only on file systems with project quotas. So one asyncio task of the lab
checks the free space of the host's file system four times a second. The task measures the disk use of the containers
only if the free space has decreased so much that a container could be near a limit, or if the last measurement is a few
seconds old. Containers over a limit are killed through the engine.

Between two checks, a container's CPU limit and maximum file size restrict how much the container can write. System
calls that reserve much space at once are refused (sandbox_images/console/console.c).
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
    """A container with its disk limits and its latest measured disk use.

    ``upper`` is the folder of the container's writable overlay layer. ``first`` is the pid of the container's first
    process. ``max_bytes`` and ``max_files`` are the limits. ``end`` is a function that kills the container. ``full`` is
    True after the container has exceeded a limit. ``bytes`` and ``files`` are the measured disk use.
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
        """Return whether the container would be near a limit if it alone had used up the lost free space.

        ``lost`` is how many free bytes and free files the host's file system has lost since the last measurement of the
        container's disk use. Small losses are ignored.
        """
        lost_bytes, lost_files = lost
        near_bytes = lost_bytes > IGNORED_BYTES and self.bytes + lost_bytes > NEAR_LIMIT * self.max_bytes
        return near_bytes or (lost_files > IGNORED_FILES and self.files + lost_files > NEAR_LIMIT * self.max_files)


@dataclass
class DiskQuota:
    """Enforces the disk limits of all of this process's containers in one asyncio task.

    If a check fails, the task continues with the next check.
    """

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
        """Check the free space, measure the containers' disk use if necessary, and kill containers over a limit."""
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
        """Return the free bytes and free files of the file system that contains the overlay layers.

        Returns None if no container's overlay layer exists any more.
        """
        for container in self._bounded:
            with suppress(FileNotFoundError):  # the layer may vanish at any moment: another one serves as well
                found = os.statvfs(container.upper)
                return found.f_bfree * found.f_frsize, found.f_ffree
        return None


def over_quota(containers: list[BoundedContainer]) -> list[BoundedContainer]:
    """Measure and store the disk use of each container, and return the containers over a limit.

    Disk use includes the container's overlay layer and deleted files that the container's processes still have open or
    mapped. Raises subprocess.TimeoutExpired if du takes too long, and OSError if du can't be started.
    """
    folders = [each.upper for each in containers]
    sizes, counts = _du(folders, "--block-size=1"), _du(folders, "--inodes")
    for each in containers:
        deleted = {(found.st_dev, found.st_ino): found.st_blocks * BLOCK_BYTES for found in _deleted_files(each.first)}
        each.bytes = sizes.get(each.upper, 0) + sum(deleted.values())
        each.files = counts.get(each.upper, 0) + len(deleted)
    return [each for each in containers if each.bytes > each.max_bytes or each.files > each.max_files]


def _du(folders: list[Path], unit: str) -> dict[Path, int]:
    """Run du and return the total for each folder.

    ``unit`` is the du option that selects whether bytes or files are counted.
    """
    if not folders:
        return {}
    command = ["du", "--summarize", "--one-file-system", unit, *map(str, folders)]
    done = subprocess.run(
        command, env=without_keys(), capture_output=True, text=True, check=False, timeout=DU_TIMEOUT_S
    )
    counted = (line.partition("\t") for line in done.stdout.splitlines())  # du leaves out a folder that has vanished
    return {Path(folder): int(count) for count, _, folder in counted}


def _deleted_files(first: int) -> Iterator[os.stat_result]:
    """Yield the stat result of each deleted regular file that the container's processes still have open or mapped.

    ``first`` is the pid of the container's first process.
    """
    for pid in processes_of(first):
        for place in ("fd", "map_files"):
            yield from _without_name(Path(f"/proc/{pid}/{place}"))


def processes_of(first: int) -> Iterator[int]:
    """Yield ``first``, the pid of a container's first process, and the pids of all descendants of that process."""
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
    """Yield the stat result of each deleted regular file that ``folder`` lists.

    ``folder`` is a folder in /proc that lists the open or mapped files of a process.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found = entry.stat()
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    yield found
