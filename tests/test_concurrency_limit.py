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
    """Whatever an engine answers, from one start a core to MOST_A_CORE are let through."""
    assert cores <= adapted(limit, cores, best_s=min(best, now), now_s=now) <= MOST_A_CORE * cores


@pytest.mark.parametrize(
    ("now", "step"), [(0.1, 1), (0.11, 1), (0.2, 0), (1.0, -1)], ids=["idle", "hardly busy", "busy", "overrun"]
)
def test_the_limit_follows_the_queue_at_the_engine(now: float, step: int) -> None:
    """An engine that answers as quickly as ever gets more to do, one with a long queue less."""
    assert adapted(6, 2, best_s=0.1, now_s=now) == 6 + step


def test_a_saturated_engine_is_left_at_about_twice_its_cores() -> None:
    """Where answers take as long as the work before them, the limit settles between two and three a core."""
    limit, cores, alone_s = 2, 2, 0.2
    for _ in range(50):
        limit = adapted(limit, cores, best_s=alone_s, now_s=alone_s * max(1.0, limit / cores))
    assert 2 * cores <= limit <= 3 * cores


@asynchronous
async def test_no_more_than_the_limit_are_under_way() -> None:
    """Of many that want a turn at once no more than the limit have one, and all have it in the end."""
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
    """Nobody is overtaken: the first that waits is the next."""
    concurrency, came = ConcurrencyLimit(cores=1), []

    async def one(number: int) -> None:
        async with concurrency.slot():
            came.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(9)))
    assert came == sorted(came)


@asynchronous
async def test_whoever_gives_up_leaves_its_turn_to_others() -> None:
    """A cancelled wait, before or after its turn has come, holds nobody up."""
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
