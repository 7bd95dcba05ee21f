"""Limits how many containers are started or removed at the same time on one Docker engine.

An engine slows down if it receives too many requests at once. The best number of concurrent requests depends on the
host and changes over time, so the limit is adapted to the engine's response times.

After each response, the lab estimates how many requests are queued in the engine. The formula is
``limit * (1 - best / now)``. In this formula, ``limit`` is the current limit, ``now`` is the latest response time and
``best`` is the shortest recent response time. The limit grows while the queue is shorter than the number of CPU cores,
and shrinks while the queue is longer than twice that number. TCP Vegas adapts its window in the same way (Brakmo and
Peterson 1995, https://doi.org/10.1109/49.464716).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

RECENT_RESPONSES = 100
MOST_A_CORE = 4


@dataclass
class ConcurrencyLimit:
    """An adaptive limit on the number of concurrent requests to one engine.

    Waiting requests are admitted in order of arrival. ``cores`` is the number of CPU cores of the engine's host.
    ``limit`` is the current limit. ``under_way`` is the number of requests in progress.
    """

    cores: int
    limit: int = field(init=False)
    under_way: int = 0
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_RESPONSES))

    def __post_init__(self) -> None:
        self.limit = 2 * self.cores

    @asynccontextmanager
    async def slot(self, *, timed: bool = False) -> AsyncIterator[None]:
        """Wait until the limit allows another request, and count the ``with`` block as a request in progress.

        If ``timed`` is True, the duration of the ``with`` block is used as the engine's response time to adapt the
        limit.
        """
        await self._wait()
        began = time.monotonic()
        try:
            yield
            if timed:
                self._adapt(time.monotonic() - began)
        finally:
            self.under_way -= 1
            self._admit()

    async def _wait(self) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.under_way -= 1
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and (self.under_way < self.limit or self._waiting[0].done()):
            first = self._waiting.popleft()
            if not first.done():
                self.under_way += 1
                first.set_result(None)

    def _adapt(self, took_s: float) -> None:
        self._recent.append(took_s)
        self.limit = adapted(self.limit, self.cores, best_s=min(self._recent), now_s=took_s)


def adapted(limit: int, cores: int, *, best_s: float, now_s: float) -> int:
    """Compute the next limit on concurrent requests from the current limit and two response times.

    ``cores`` is the number of CPU cores of the engine's host. ``best_s`` is the shortest recent response time, and
    ``now_s`` is the latest one. The result is between ``cores`` and ``MOST_A_CORE * cores``.
    """
    queue = limit * (1 - best_s / now_s) if now_s else 0.0
    step = 1 if queue < cores else -1 if queue > 2 * cores else 0
    return max(cores, min(limit + step, MOST_A_CORE * cores))
