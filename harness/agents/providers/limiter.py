"""A rate limiter that all concurrent calls to one model share. It follows the provider's rate-limit headers.

The functions only compute waiting times and new states. The class ``RateLimiter`` does the waiting.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime

TOO_MANY = 429
OVERLOADED = (TOO_MANY, 503, 529)
MAX_HOLD_S = 60.0  # the longest pause after a rate-limit response that names no time
_REQUESTS = ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "x-ratelimit-{}")
_TOKENS = ("x-ratelimit-{}-tokens", "anthropic-ratelimit-input-tokens-{}", "anthropic-ratelimit-tokens-{}")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_EPOCH = 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """A provider's quota of requests or tokens.

    ``left`` is the unused part of the quota. ``full_at`` is the monotonic time at which the quota will be full again.
    ``limit`` is the size of the full quota, or None if the size is unknown.
    """

    left: float
    full_at: float
    limit: float | None = None

    def wait_s(self, need: float, now: float) -> float:
        """Return the seconds until ``need`` requests or tokens are available. ``now`` is the current monotonic time.

        The quota is assumed to refill at a constant rate until ``full_at``. If ``limit`` is None, the quota is assumed
        to refill all at once at ``full_at``.
        """
        if need <= self.left or now >= self.full_at:
            return 0.0
        rest = self.full_at - now
        if self.limit is None or self.limit <= self.left:
            return rest
        return rest * min(1.0, (need - self.left) / (self.limit - self.left))


@dataclass(frozen=True, slots=True)
class RateState:
    """The state of a rate limiter at one moment.

    ``held_until`` is the monotonic time before which no call may start. ``window`` is the maximum number of concurrent
    calls. ``strikes`` is the number of pauses that rate-limit responses have caused since the last successful call.
    ``requests`` and ``tokens`` are the last quotas that the provider reported, or None.
    """

    held_until: float = 0.0
    window: float = math.inf
    strikes: int = 0
    requests: Allowance | None = None
    tokens: Allowance | None = None


def wait_s(state: RateState, under_way: int, size: int, now: float) -> float:
    """Return how many seconds a call of ``size`` tokens must wait before it may start.

    ``under_way`` is the number of running calls. The result is infinite if a running call must end first.
    """
    if under_way >= state.window:
        return math.inf
    allowances = [
        each.wait_s(need, now) for each, need in ((state.requests, 1), (state.tokens, size)) if each is not None
    ]
    return max(0.0, state.held_until - now, *allowances)


def call_started(state: RateState, size: int) -> RateState:
    """Return the rate limiter's state after the start of a call of ``size`` tokens.

    One request and ``size`` tokens are subtracted from the quotas.
    """
    requests = state.requests and replace(state.requests, left=state.requests.left - 1)
    tokens = state.tokens and replace(state.tokens, left=state.tokens.left - size)
    return replace(state, requests=requests, tokens=tokens)


def response_received(
    state: RateState,
    status: int,
    headers: Mapping[str, str],
    *,
    under_way: int,
    now: float,
    wall: float,
    longest_s: float,
) -> RateState:
    """Return the rate limiter's new state after a response with the given status and headers.

    The quotas are updated from the headers. A rate-limit response is a response with status 429, or a response with
    status 503 or 529 that names a waiting time. After a rate-limit response, no call may start for the named time or a
    default time, limited to ``longest_s`` seconds. Unless calls were already delayed, the maximum number of concurrent
    calls is also lowered to half the number of running calls. Each successful response raises this maximum by one.

    ``under_way`` is the number of running calls, including the call that got the response. ``now`` is the monotonic
    time, and ``wall`` is the Unix time.
    """
    state = replace(
        state,
        requests=_allowance(headers, _REQUESTS, now, wall) or state.requests,
        tokens=_allowance(headers, _TOKENS, now, wall) or state.tokens,
    )
    after = retry_after_s(headers, wall)
    if status == TOO_MANY or (status in OVERLOADED and after is not None):
        already_held = now < state.held_until
        strikes = state.strikes if already_held else state.strikes + 1
        hold = min(MAX_HOLD_S, 2.0 ** (strikes - 1)) if after is None else after
        window = state.window if already_held else max(1.0, min(under_way, state.window) // 2)
        until = max(state.held_until, now + min(hold, longest_s))
        return replace(state, held_until=until, window=window, strikes=strikes)
    if status < 400:
        return replace(state, window=state.window + 1, strikes=0)
    return state


def _allowance(headers: Mapping[str, str], names: tuple[str, ...], now: float, wall: float) -> Allowance | None:
    for name in names:
        left, reset = _number(headers.get(name.format("remaining"))), headers.get(name.format("reset"))
        if left is not None and reset is not None and (seconds := _seconds(reset, wall)) is not None:
            return Allowance(left, now + seconds, _number(headers.get(name.format("limit"))))
    return None


def retry_after_s(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the waiting time in seconds that response ``headers`` ask for, or None if no header asks for a wait.

    ``wall`` is the current Unix time.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - wall)
    except ValueError:
        return _seconds(value, wall)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds(text: str, wall: float) -> float | None:
    """Convert a time from a response header to seconds from now, or return None if ``text`` is invalid.

    ``text`` may be a number of seconds (12), a duration (1m30s or 20ms), an ISO date or a Unix time. ``wall`` is the
    current Unix time.
    """
    number = _number(text)
    if number is not None:
        epoch = number / 1000 if number > _EPOCH * 1000 else number
        return max(0.0, epoch - wall if epoch > _EPOCH else number)
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    if parts and "".join(value + unit for value, unit in parts) == text.strip():
        return float(sum((_number(value) or 0.0) * _UNITS[unit] for value, unit in parts))
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - wall)
    except ValueError:
        return None


class RateLimiter:
    """A rate limiter that delays calls to stay within the limits that the provider has reported."""

    def __init__(self, longest_s: float) -> None:
        self.state = RateState()
        self._longest_s = longest_s
        self.under_way = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self, size: int) -> AsyncIterator[None]:
        """Wait until a call of ``size`` tokens may start. The call counts as running until the ``with`` block ends."""
        async with self._changed:
            while (wait := wait_s(self.state, self.under_way, size, time.monotonic())) > 0:
                try:
                    async with asyncio.timeout(min(wait, self._longest_s)):
                        await self._changed.wait()
                except TimeoutError:
                    if wait > self._longest_s:
                        break  # a provider can't delay a call for longer than this
            self.state = call_started(self.state, size)
            self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            async with self._changed:
                self._changed.notify_all()

    def record(self, status: int, headers: Mapping[str, str]) -> None:
        """Update the limiter's state from the status and headers of a response."""
        now, wall = time.monotonic(), time.time()
        self.state = response_received(
            self.state, status, headers, under_way=self.under_way, now=now, wall=wall, longest_s=self._longest_s
        )
