"""The disk a container may fill, bounded in all: the engine bounds it only on file systems with project quotas.

One task of the process looks, four times a second, at how much room the host's file system has lost; only where that
could have brought a container near its bounds, or some seconds have passed, does it add up what each container holds.
One that holds more than it may is ended through the engine, as one that runs out of memory is by the kernel. What a
container can write in between is bounded by its share of the processor and by the size of a file; calls that take room
at once are refused to it (sandbox_images/console/console.c).
"""

from __future__ import annotations

import asyncio
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

PERIOD_S = 0.25
ANYWAY_S = 5.0
NOTICED_BYTES = 16 << 20
NOTICED_FILES = 2_000
NEAR = 0.5  # of a bound
BLOCK = 512
DU_LIMIT_S = 60.0
PROCESSES = 4_096


@dataclass(eq=False)
class BoundedContainer:
    """One container's layer, first process and bounds; what it held when that was added up last; ``full``: too much."""

    upper: Path
    first: int
    max_bytes: int
    max_files: int
    end: Callable[[], Awaitable[None]]
    full: bool = False
    bytes: int = 0
    files: int = 0

    def may_be_near(self, lost: tuple[int, int]) -> bool:
        """Whether it could be near its bounds, had it taken all the bytes and files for which there was room since."""
        lost_bytes, lost_files = lost
        near_bytes = lost_bytes > NOTICED_BYTES and self.bytes + lost_bytes > NEAR * self.max_bytes
        return near_bytes or (lost_files > NOTICED_FILES and self.files + lost_files > NEAR * self.max_files)


@dataclass
class DiskQuota:
    """Guards the containers of one process."""

    _guarded: list[BoundedContainer] = field(default_factory=list)
    _watching: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def enforced(self, one: BoundedContainer) -> AsyncIterator[None]:
        """Guard a container while the block runs."""
        self._guarded.append(one)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._guarded.remove(one)
            if not self._guarded:
                watching, self._watching = self._watching, None
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        room, walked = _room(self._guarded[0].upper), time.monotonic()
        while True:
            await asyncio.sleep(PERIOD_S)
            now, guarded = _room(self._guarded[0].upper), [each for each in self._guarded if not each.full]
            lost = room[0] - now[0], room[1] - now[1]
            if time.monotonic() - walked < ANYWAY_S and not any(one.may_be_near(lost) for one in guarded):
                room = max(room[0], now[0]), max(room[1], now[1])
                continue
            for one in await asyncio.to_thread(over_quota, guarded):
                one.full = True
                await one.end()
            room, walked = now, time.monotonic()


def _room(folder: Path) -> tuple[int, int]:
    """The bytes and files for which the file system has room."""
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize, found.f_ffree


def over_quota(guarded: list[BoundedContainer]) -> list[BoundedContainer]:
    """Add up what each holds in its layer and open without a name; those for which it is too much."""
    folders = [one.upper for one in guarded]
    sizes, counts = _du(folders, "--block-size=1"), _du(folders, "--inodes")
    for one in guarded:
        nameless = {(found.st_dev, found.st_ino): found.st_blocks * BLOCK for found in _nameless(one.first)}
        one.bytes = sizes.get(one.upper, 0) + sum(nameless.values())
        one.files = counts.get(one.upper, 0) + len(nameless)
    return [one for one in guarded if one.bytes > one.max_bytes or one.files > one.max_files]


def _du(folders: list[Path], what: str) -> dict[Path, int]:
    """What du counts below each folder: it follows no link and goes as deep as there are folders."""
    if not folders:
        return {}
    command = ["du", "--summarize", "--one-file-system", what, *map(str, folders)]
    done = subprocess.run(command, env=without_keys(), capture_output=True, text=True, check=False, timeout=DU_LIMIT_S)
    counted = (line.partition("\t") for line in done.stdout.splitlines())  # what goes away meanwhile, it leaves out
    return {Path(folder): int(count) for count, _, folder in counted}


def _nameless(first: int) -> Iterator[os.stat_result]:
    for pid in processes_of(first):
        for place in ("fd", "map_files"):
            yield from _removed(Path(f"/proc/{pid}/{place}"))


def processes_of(first: int) -> Iterator[int]:
    """A container's processes: all descend from its first one."""
    waiting, known = [first], 0
    while waiting and known < PROCESSES:
        pid = waiting.pop()
        known += 1
        yield pid
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    waiting += map(int, text_of(f"/proc/{pid}/task/{task}/children", records=True).split())


def _removed(folder: Path) -> Iterator[os.stat_result]:
    """The regular files behind a process's descriptors or mappings that have no name any more."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found = entry.stat()
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    yield found
