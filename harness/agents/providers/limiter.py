"""The rate limiter that all concurrent calls to one model share; it follows the provider's rate-limit headers.

``wait_s``, ``call_started`` and ``response_received`` are pure functions of a RateState; only ``RateLimiter`` waits.
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
    """A provider's quota of requests or tokens: what is left, and when the quota will be full again."""

    left: float
    full_at: float
    limit: float | None = None

    def wait_s(self, need: float, now: float) -> float:
        """Return the seconds until ``need`` may be used.

        Assumes that the quota refills at a constant rate, or, if its limit is unknown, all at once at ``full_at``.
        """
        if need <= self.left or now >= self.full_at:
            return 0.0
        rest = self.full_at - now
        if self.limit is None or self.limit <= self.left:
            return rest
        return rest * min(1.0, (need - self.left) / (self.limit - self.left))


@dataclass(frozen=True, slots=True)
class RateState:
    """State of a rate limiter.

    No call may start before ``held_until``; ``window`` is the most calls that may be open at a time; ``strikes`` counts
    the rate-limit responses since the last success.
    """

    held_until: float = 0.0
    window: float = math.inf
    strikes: int = 0
    requests: Allowance | None = None
    tokens: Allowance | None = None


def wait_s(state: RateState, under_way: int, size: int, now: float) -> float:
    """Return the seconds that a call of ``size`` tokens must wait; infinite if it must wait for another to end."""
    if under_way >= state.window:
        return math.inf
    allowances = [
        each.wait_s(need, now) for each, need in ((state.requests, 1), (state.tokens, size)) if each is not None
    ]
    return max(0.0, state.held_until - now, *allowances)


def call_started(state: RateState, size: int) -> RateState:
    """Return the state after a call of ``size`` tokens has started."""
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
    """Return the state after a response; ``under_way`` counts the open calls, including this one.

    A rate-limit response (429, 503 or 529) delays all calls until the time that it names, at most ``longest_s``, and
    halves the window, but only once for all calls open at the time. Each success widens the window by one call.
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
    """Return the seconds that a response's headers ask the caller to wait, or None if they don't say."""
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
    """Parse a header's time (12, 1m30s, 20ms, an ISO date or Unix time) as seconds from now; None if invalid."""
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
    """Delays calls so that they stay within the limits that the provider has reported."""

    def __init__(self, longest_s: float) -> None:
        self.state = RateState()
        self._longest_s = longest_s
        self.under_way = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self, size: int) -> AsyncIterator[None]:
        """Wait until a call of ``size`` tokens is allowed; the call counts as open inside the block."""
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
        """Update the limits from the response to an open call."""
        now, wall = time.monotonic(), time.time()
        self.state = response_received(
            self.state, status, headers, under_way=self.under_way, now=now, wall=wall, longest_s=self._longest_s
        )
