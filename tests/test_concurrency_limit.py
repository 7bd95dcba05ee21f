"""The concurrency limit: how it adapts to an engine's response times, and how waiters are admitted."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sandbox.docker.limits.concurrency_limit import MOST_A_CORE, ConcurrencyLimit, adapted
from tests.builders import asynchronous

seconds = st.floats(min_value=1e-3, max_value=1e3)


@given(st.integers(1, 64), st.integers(1, 256), seconds, seconds)
def test_the_limit_stays_within_what_an_engine_can_do(cores: int, limit: int, best: float, now: float) -> None:
    """Whatever the response times are, the limit stays between one and MOST_A_CORE starts a core."""
    assert cores <= adapted(limit, cores, best_s=min(best, now), now_s=now) <= MOST_A_CORE * cores


@pytest.mark.parametrize(
    ("now", "step"), [(0.1, 1), (0.11, 1), (0.2, 0), (1.0, -1)], ids=["idle", "hardly busy", "busy", "overrun"]
)
def test_the_limit_follows_the_queue_at_the_engine(now: float, step: int) -> None:
    """The limit grows while responses are as fast as the best, and shrinks when they show a long queue."""
    assert adapted(6, 2, best_s=0.1, now_s=now) == 6 + step


def test_a_saturated_engine_is_left_at_about_twice_its_cores() -> None:
    """Where the response time grows with the number of requests, the limit settles at two to three a core."""
    limit, cores, alone_s = 2, 2, 0.2
    for _ in range(50):
        limit = adapted(limit, cores, best_s=alone_s, now_s=alone_s * max(1.0, limit / cores))
    assert 2 * cores <= limit <= 3 * cores


@asynchronous
async def test_no_more_than_the_limit_are_under_way() -> None:
    """Of 50 tasks that want a slot at once, no more than the limit hold one, and all get one in the end."""
    concurrency, most, done = ConcurrencyLimit(cores=2), 0, 0

    async def one() -> None:
        nonlocal most, done
        async with concurrency.slot():
            most = max(most, concurrency.under_way)
            await asyncio.sleep(0)
            done += 1

    await asyncio.gather(*(one() for _ in range(50)))
    assert (most, done, concurrency.under_way) == (4, 50, 0)


@asynchronous
async def test_turns_come_in_the_order_asked() -> None:
    """Waiting tasks get slots in the order in which they asked."""
    concurrency, came = ConcurrencyLimit(cores=1), []

    async def one(number: int) -> None:
        async with concurrency.slot():
            came.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(9)))
    assert came == sorted(came)


@asynchronous
async def test_whoever_gives_up_leaves_its_turn_to_others() -> None:
    """A task cancelled while it waits, or just after it was admitted, frees its slot for others."""
    concurrency, go = ConcurrencyLimit(cores=1), asyncio.Event()

    async def one() -> None:
        async with concurrency.slot():
            await go.wait()

    tasks = [asyncio.create_task(one()) for _ in range(6)]
    await asyncio.sleep(0)
    go.set()
    for task in tasks[:4]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [True] * 4 + [False] * 2
    assert concurrency.under_way == 0
