"""Tests of the rate limiter: what it learns from a provider's responses, and how long calls wait."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agents.providers.limiter import (
    Allowance,
    RateLimiter,
    RateState,
    call_started,
    response_received,
    retry_after_s,
    wait_s,
)
from tests.builders import asynchronous, law
from tests.live import asking, play
from tests.provider_server import Asked, Reply, obedient, plays

WALL = 1_800_000_000.0
STAMP = datetime.fromtimestamp(WALL + 30, UTC)


def after(
    status: int, headers: dict[str, str] | None = None, state: RateState | None = None, **when: float
) -> RateState:
    """Return the limiter's state after a response at second 100, with eight calls in progress."""
    usual = {"under_way": 8, "now": 100.0, "wall": WALL, "longest_s": 3600.0}
    return response_received(state or RateState(), status, headers or {}, **{**usual, **when})  # type: ignore[arg-type] # one is an int


# ---- what the limiter learns ----


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"}, 12),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "12s"}, 0),
        ({"x-ratelimit-remaining-tokens": "400", "x-ratelimit-reset-tokens": "10s"}, 10),
        ({"x-ratelimit-remaining-tokens": "600", "x-ratelimit-reset-tokens": "10s"}, 0),
        (
            {
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-limit-tokens": "1000",
                "x-ratelimit-reset-tokens": "60s",
            },
            30,
        ),
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": STAMP.isoformat()}, 30),
        ({"anthropic-ratelimit-input-tokens-remaining": "9", "anthropic-ratelimit-input-tokens-reset": "1027-"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int((WALL + 5) * 1000))}, 5),
        ({"x-ratelimit-remaining-requests": "few", "x-ratelimit-reset-requests": "12s"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0),
        ({"x-ratelimit-remaining-requests": "nan", "x-ratelimit-reset-requests": "1s"}, 0),
        ({}, 0),
    ],
)
def test_headers_say_how_long_to_wait(headers: dict[str, str], wait: float) -> None:
    """A call of 500 tokens waits until the rate limits in the response headers allow it, in every header format."""
    assert wait_s(after(200, headers), 0, 500, now=100) == pytest.approx(wait)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": format_datetime(STAMP, usegmt=True)}, 30),
        ({"retry-after": format_datetime(datetime.fromtimestamp(WALL - 9, UTC), usegmt=True)}, 0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], wait: float | None) -> None:
    """Retry-After is read as seconds, milliseconds or a date; an invalid value is ignored."""
    assert retry_after_s(headers, WALL) == wait


def test_a_refusal_holds_everybody_back() -> None:
    """After status 429, no call starts before the time that the response names."""
    state = after(429, {"retry-after": "7"})
    assert wait_s(state, 0, 1, now=100) == 7
    assert wait_s(state, 0, 1, now=104) == 3
    assert wait_s(state, 0, 1, now=107) == 0


def test_refusals_without_a_time_are_waited_for_longer_each_time() -> None:
    """After status 429 without a time, calls wait one second, doubled with each further 429 up to a minute."""
    state, waits = RateState(), []
    for number in range(9):
        now = 1000.0 * (number + 1)
        state = after(429, state=state, now=now)
        waits.append(wait_s(state, 0, 1, now))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert wait_s(after(429, state=after(200, state=state, now=20_000), now=30_000), 0, 1, 30_000) == 1


def test_a_burst_of_refusals_counts_once() -> None:
    """Several 429 responses to calls that were already in progress halve the window only once."""
    state = after(429, {"retry-after": "7"})
    assert state.window == 4
    assert after(429, {"retry-after": "9"}, state, now=101).window == 4
    assert after(429, {"retry-after": "9"}, state, now=101).held_until == 110
    assert after(429, state=state, now=200).window == 2


def test_each_success_opens_the_window() -> None:
    """Each success increases the window of concurrent calls by one, and the window never closes completely."""
    state = after(429, under_way=1)
    assert (state.window, wait_s(state, 1, 1, now=200)) == (1, math.inf)
    assert after(200, state=state).window == 2
    assert after(200).window == math.inf


def test_a_server_error_holds_nobody_unless_it_says_so() -> None:
    """A server error delays other calls only if its response names a time to wait."""
    assert after(500) == RateState()
    assert wait_s(after(529, {"retry-after": "3"}), 0, 1, now=100) == 3


def test_nobody_is_held_longer_than_patience_lasts() -> None:
    """A wait that the provider asks for is limited to the patience limit."""
    assert wait_s(after(429, {"retry-after": "86400"}, longest_s=60), 0, 1, now=100) == 60


def test_what_is_under_way_is_taken_off() -> None:
    """Calls that started since the last response are subtracted from the remaining allowance."""
    state = RateState(requests=Allowance(2, 110), tokens=Allowance(1000, 110))
    assert wait_s(call_started(call_started(state, 400), 400), 2, 100, now=100) == 10
    assert wait_s(call_started(state, 400), 1, 700, now=100) == 10
    assert wait_s(call_started(state, 400), 1, 600, now=100) == 0


@law
@given(
    st.lists(st.tuples(st.sampled_from([200, 429, 500, 529]), st.text(max_size=9), st.floats(0, 1e6)), max_size=20),
    st.integers(0, 50),
)
def test_no_pace_is_for_ever(answers: list[tuple[int, str, float]], size: int) -> None:
    """After any sequence of responses, a single call waits a finite, non-negative time."""
    state = RateState()
    for status, value, now in answers:
        headers = {"retry-after": value, "x-ratelimit-remaining-tokens": value, "x-ratelimit-reset-tokens": value}
        state = after(status, headers, state, now=now)
    assert 0 <= wait_s(state, 0, size, now=0) < math.inf


# ---- waiting ----


@asynchronous
async def test_calls_wait_their_turn_together() -> None:
    """Calls wait until a hold ends, and then run no more at once than the window allows."""
    limiter, begun_at, at_once = RateLimiter(60), list[float](), list[int]()

    async def call() -> None:
        async with limiter.slot(1):
            begun_at.append(time.monotonic())
            at_once.append(limiter.under_way)
            await asyncio.sleep(0.01)

    async with limiter.slot(1), limiter.slot(1):
        held = time.monotonic()
        limiter.record(429, {"retry-after": "0.3"})
        calls = [asyncio.create_task(call()) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert begun_at == []
    await asyncio.gather(*calls)
    assert min(begun_at) - held >= 0.29
    assert max(at_once) == 1


@asynchronous
async def test_a_waiting_call_that_is_given_up_holds_nobody_up() -> None:
    """A call cancelled while it waits or runs frees its place for other calls."""
    limiter = RateLimiter(60)
    limiter.state = RateState(window=1)
    running, waiting = (asyncio.create_task(_hold(limiter)) for _ in range(2))
    await asyncio.sleep(0.01)
    for task in (waiting, running):
        task.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    async with asyncio.timeout(10), limiter.slot(1):
        assert limiter.under_way == 1


async def _hold(limiter: RateLimiter) -> None:
    async with limiter.slot(1):
        await asyncio.sleep(60)


@asynchronous
async def test_concurrent_trials_share_one_pace() -> None:
    """A 429 response to one trial delays the calls of all trials, and every trial still finishes."""
    refused: list[float] = []
    begins: list[float] = []
    says = plays("chat", *obedient(), after_s=0.02)

    def script(asked: Asked) -> Reply:
        begins.append(time.monotonic())
        if len(begins) == 6:
            refused.append(time.monotonic())
            return Reply({"error": {"message": "slow down"}}, 429, {"retry-after-ms": "400"})
        return says(asked)

    async with asking(script, "chat") as (_, model):
        records = await play(model, n=8, concurrency=8)
        assert model.client.limiter.state.window < math.inf
    assert max(begins) - refused[0] >= 0.38
    assert sum(record.retries for record in records) == 1
    assert {record.verdict.outcome.value for record in records} == {"complied"}
