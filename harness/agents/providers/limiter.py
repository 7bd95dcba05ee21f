"""One pace for all concurrent calls of a provider and model, learnt from what the provider says.

``wait_s``, ``begun`` and ``learned`` decide and are pure; ``Limiter`` waits.
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
LONGEST_STRIKE_S = 60.0
_REQUESTS = ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "x-ratelimit-{}")
_TOKENS = ("x-ratelimit-{}-tokens", "anthropic-ratelimit-input-tokens-{}", "anthropic-ratelimit-tokens-{}")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_EPOCH = 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of something may still be used, and when it will be full again."""

    left: float
    full_at: float
    limit: float | None = None

    def wait_s(self, need: float, now: float) -> float:
        """How long until ``need`` may be used. It refills evenly; without a limit it is taken to refill at once."""
        if need <= self.left or now >= self.full_at:
            return 0.0
        rest = self.full_at - now
        if self.limit is None or self.limit <= self.left:
            return rest
        return rest * min(1.0, (need - self.left) / (self.limit - self.left))


@dataclass(frozen=True, slots=True)
class RateState:
    """What is known. ``window`` is how many calls may be under way; ``strikes`` counts refusals since a success."""

    held_until: float = 0.0
    window: float = math.inf
    strikes: int = 0
    requests: Allowance | None = None
    tokens: Allowance | None = None


def wait_s(pace: RateState, under_way: int, size: int, now: float) -> float:
    """How long a call of ``size`` tokens must wait; infinite: until another one is over."""
    if under_way >= pace.window:
        return math.inf
    allowances = [
        each.wait_s(need, now) for each, need in ((pace.requests, 1), (pace.tokens, size)) if each is not None
    ]
    return max(0.0, pace.held_until - now, *allowances)


def begun(pace: RateState, size: int) -> RateState:
    """The pace once a call of that size is under way."""
    requests = pace.requests and replace(pace.requests, left=pace.requests.left - 1)
    tokens = pace.tokens and replace(pace.tokens, left=pace.tokens.left - size)
    return replace(pace, requests=requests, tokens=tokens)


def learned(
    pace: RateState,
    status: int,
    headers: Mapping[str, str],
    *,
    under_way: int,
    now: float,
    wall: float,
    longest_s: float,
) -> RateState:
    """The pace after an answer, ``under_way`` calls (this one included) being open.

    A refusal holds everybody back until the time it names, at most ``longest_s``, and halves the window, once for all
    the calls that were already under way; each success opens the window by one.
    """
    pace = replace(
        pace,
        requests=_allowance(headers, _REQUESTS, now, wall) or pace.requests,
        tokens=_allowance(headers, _TOKENS, now, wall) or pace.tokens,
    )
    after = retry_after_s(headers, wall)
    if status == TOO_MANY or (status in OVERLOADED and after is not None):
        again = now < pace.held_until
        strikes = pace.strikes if again else pace.strikes + 1
        hold = min(LONGEST_STRIKE_S, 2.0 ** (strikes - 1)) if after is None else after
        window = pace.window if again else max(1.0, min(under_way, pace.window) // 2)
        until = max(pace.held_until, now + min(hold, longest_s))
        return replace(pace, held_until=until, window=window, strikes=strikes)
    if status < 400:
        return replace(pace, window=pace.window + 1, strikes=0)
    return pace


def _allowance(headers: Mapping[str, str], names: tuple[str, ...], now: float, wall: float) -> Allowance | None:
    for name in names:
        left, reset = _number(headers.get(name.format("remaining"))), headers.get(name.format("reset"))
        if left is not None and reset is not None and (seconds := _seconds(reset, wall)) is not None:
            return Allowance(left, now + seconds, _number(headers.get(name.format("limit"))))
    return None


def retry_after_s(headers: Mapping[str, str], wall: float) -> float | None:
    """How long a provider asks to wait, or None where it doesn't say."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - wall)
    except ValueError:
        return _seconds(said, wall)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds(text: str, wall: float) -> float | None:
    """Seconds from now in any of the forms in use: 12, 1m30s, 20ms, a time of day, or a count since 1970."""
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
    """Lets calls through at the pace that was learnt."""

    def __init__(self, longest_s: float) -> None:
        self.pace = RateState()
        self._longest_s = longest_s
        self.under_way = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait for the turn of a call of ``size`` tokens; it is under way within the block."""
        async with self._changed:
            while (wait := wait_s(self.pace, self.under_way, size, time.monotonic())) > 0:
                try:
                    async with asyncio.timeout(min(wait, self._longest_s)):
                        await self._changed.wait()
                except TimeoutError:
                    if wait > self._longest_s:
                        break  # nobody waits longer than that, whatever was said
            self.pace = begun(self.pace, size)
            self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            async with self._changed:
                self._changed.notify_all()

    def learn(self, status: int, headers: Mapping[str, str]) -> None:
        """Take note of an answer to a call that is under way."""
        now, wall = time.monotonic(), time.time()
        self.pace = learned(
            self.pace, status, headers, under_way=self.under_way, now=now, wall=wall, longest_s=self._longest_s
        )
