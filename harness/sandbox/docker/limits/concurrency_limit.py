"""How many containers may be started or removed at once.

An engine does so much at a time and no more: asked for more, it does less (a third less at eight times its cores). What
it can do differs from host to host and from minute to minute, so the limit follows its answers. Each tells how long
the queue at the engine is: ``limit * (1 - best / now)`` of those under way wait there, where ``best`` is the quickest
answer of late. The limit grows while the queue is shorter than the engine has cores and shrinks when it is longer than
twice that, as TCP Vegas does it (Brakmo and Peterson 1995, https://doi.org/10.1109/49.464716).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

RECENT = 100
MOST_A_CORE = 4


@dataclass
class ConcurrencyLimit:
    """The limit for one engine of so many cores, and who waits for it, first come first served."""

    cores: int
    limit: int = field(init=False)
    under_way: int = 0
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self.limit = 2 * self.cores

    @asynccontextmanager
    async def slot(self, *, timed: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs. The limit learns from those that are ``timed``."""
        await self._wait()
        began = time.monotonic()
        try:
            yield
            if timed:
                self._learn(time.monotonic() - began)
        finally:
            self.under_way -= 1
            self._admit()

    async def _wait(self) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._admit()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.under_way -= 1
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and (self.under_way < self.limit or self._waiting[0].done()):
            mine = self._waiting.popleft()
            if not mine.done():
                self.under_way += 1
                mine.set_result(None)

    def _learn(self, took_s: float) -> None:
        self._recent.append(took_s)
        self.limit = adapted(self.limit, self.cores, best_s=min(self._recent), now_s=took_s)


def adapted(limit: int, cores: int, *, best_s: float, now_s: float) -> int:
    """The limit after an answer that took so long: between one a core and ``MOST_A_CORE``. Pure."""
    queue = limit * (1 - best_s / now_s) if now_s else 0.0
    step = 1 if queue < cores else -1 if queue > 2 * cores else 0
    return max(cores, min(limit + step, MOST_A_CORE * cores))
