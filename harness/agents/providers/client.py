"""One provider's line: the official SDK's client, paced together, tried again for as long as patience lasts.

This module imports an HTTP library and, when a line is opened, an SDK; only a run with a live model loads it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx2

from harness.agents.player import Turn
from harness.agents.providers.failures import Failure, FailureKind, error_for, failure_in, read_failure, redacted
from harness.agents.providers.limiter import RateLimiter, retry_after_s
from harness.agents.providers.presets import ModelChoice
from harness.errors import ProviderDownError, UnansweredError
from harness.store.transcript import Usage

CONNECT_LIMIT_S = 10.0
SDK_RETRIES = 2
LONG_WAIT_S = 60.0  # what is longer isn't left to the SDKs: one of them gives up, the other waits for days
FIRST_WAIT_S = 2.0  # the SDK has waited for half a second and for one by then
TRUSTED = 4
BYTES_PER_TOKEN = 4
MINUTE_S = 60.0
GRUMBLE_S = 60.0


class RateLimitedClient(httpx2.AsyncClient):
    """An HTTP client whose requests, retries included, wait for their turn and have an end."""

    limiter: RateLimiter
    call_limit_s: float

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """Send a request when it is its turn."""
        async with self.limiter.turn(len(request.content) // BYTES_PER_TOKEN):
            try:
                async with asyncio.timeout(self.call_limit_s):
                    response = await super().send(request, **how)
            except TimeoutError:
                raise httpx2.ReadTimeout(f"no answer in {self.call_limit_s:g} seconds", request=request) from None
            self.limiter.learn(response.status_code, response.headers)
            if (retry_after_s(response.headers, time.time()) or 0.0) > LONG_WAIT_S:
                response.headers["x-should-retry"] = "false"
            return response


@dataclass(frozen=True)
class Sdk:
    """An SDK's client, and what it raises when there is a bad answer or none."""

    client: Any
    status_error: type[Exception]
    connection_error: type[Exception]


@asynccontextmanager
async def open_sdk(choice: ModelChoice, key: str, limiter: RateLimiter, call_limit_s: float) -> AsyncIterator[Sdk]:
    """The official SDK for the provider's API, on a client of ours. No redirect is followed: it could leak the key."""
    provider = choice.provider
    timeout = httpx2.Timeout(call_limit_s, connect=min(CONNECT_LIMIT_S, call_limit_s))
    http = _http_client(provider.api)(timeout=timeout, follow_redirects=False)
    http.limiter, http.call_limit_s = limiter, call_limit_s
    how: dict[str, Any] = {
        "api_key": key or "none",
        "base_url": provider.base_url,
        "max_retries": SDK_RETRIES,
        "timeout": timeout,
        "http_client": http,
    }
    async with http:
        if provider.api == "messages":
            import anthropic  # noqa: PLC0415 - half a second that only this run pays

            client = anthropic.AsyncAnthropic(open_telemetry=False, **how)
            yield Sdk(client, anthropic.APIStatusError, anthropic.APIConnectionError)
        else:
            import openai  # noqa: PLC0415 - as above

            other = openai.AsyncOpenAI(**how)
            if provider.name != "openai":  # the user's account at OpenAI is nobody else's business
                other.organization = other.project = other.admin_api_key = None
            yield Sdk(other, openai.APIStatusError, openai.APIConnectionError)


def _http_client(api: str) -> type[RateLimitedClient]:
    """The SDK's own HTTP client, paced: it brings the SDK's settings for sockets, proxies and pools along."""
    if api == "messages":
        from anthropic import DefaultAsyncHttpxClient as Base  # noqa: PLC0415 - as in open_sdk
    else:
        from openai import DefaultAsyncHttpxClient as Base  # noqa: PLC0415 - as in open_sdk
    return type("PacedSdkClient", (RateLimitedClient, Base), {})


@dataclass
class ProviderClient:
    """A provider and one of its models, reached by an SDK. ``patience_s`` counts from a call's first failure.

    ``say`` is told now and then that calls are being made again, so that nobody wonders why nothing happens.
    """

    choice: ModelChoice
    sdk: Sdk
    limiter: RateLimiter
    key: str = field(repr=False)
    patience_s: float
    say: Callable[[str], None]
    _said_at: float = -math.inf
    _answered_at: float = -math.inf

    @property
    def who(self) -> str:
        """Provider and model, for sentences."""
        return f"{self.choice.provider.name}/{self.choice.model}"

    async def ask(
        self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Turn], *, first: bool
    ) -> Turn:
        """Make one call until there is an answer. Raises ModelError. ``first``: the conversation has just begun."""
        retries, began = 0, 0.0
        for number in itertools.count():
            answer, tried_again = await self._try(path, body, read)
            retries += tried_again
            if isinstance(answer, Turn):
                self._answered_at = time.monotonic()
                return answer.model_copy(update={"retries": retries})
            if answer.trouble is FailureKind.REFUSED:
                said = redacted(answer.message, self.key)
                raw = {"error": {"status": answer.status, "code": answer.code, "message": said}}
                return Turn(text=said, refused=True, usage=Usage(), retries=retries, raw=raw)
            if answer.trouble is not FailureKind.PASSING:
                error = error_for(answer, self.who, self.choice.provider.key, self.key, first=first)
                error.retries = retries
                raise error
            began = began or time.monotonic()
            wait = wait_before(number, answer.retry_after_s)
            if time.monotonic() + wait - began > self.patience_s:
                self._give_up(answer, retries, began)
            self._grumble(answer)
            await asyncio.sleep(wait)
            retries += 1
        raise AssertionError("the loop above has no end")

    async def _try(
        self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Turn]
    ) -> tuple[Turn | Failure, int]:
        """One call of the SDK, and how often it tried again by itself."""
        try:
            response = await self.sdk.client.post(path, body=body, cast_to=httpx2.Response)
        except self.sdk.status_error as error:
            refused: httpx2.Response = error.response  # type: ignore[attr-defined] # both SDKs' status errors have one
            after = retry_after_s(refused.headers, time.time())
            return read_failure(refused.status_code, refused.text, after), _tried_again(refused.request)
        except self.sdk.connection_error as error:
            return Failure(message=_why(error)), _tried_again(error.request)  # type: ignore[attr-defined] # as above
        return _read(response, read), _tried_again(response.request)

    def _grumble(self, failure: Failure) -> None:
        if time.monotonic() - self._said_at < GRUMBLE_S:
            return
        self._said_at = time.monotonic()
        minutes = self.patience_s / MINUTE_S
        self.say(f"{self.who} fails ({self._said(failure)}): tried again for up to {minutes:g} minutes (--patience).")

    def _said(self, failure: Failure) -> str:
        status = f"status {failure.status}" if failure.status else ""
        return ": ".join(filter(None, (status, redacted(failure.message, self.key).rstrip("."))))

    def _give_up(self, failure: Failure, retries: int, began: float) -> NoReturn:
        kind = UnansweredError if self._answered_at > began else ProviderDownError
        minutes = self.patience_s / MINUTE_S
        raise kind(
            f"{self.who} gave no usable answer in {minutes:g} minutes of patience (--patience), "
            f"after {retries} retries. The last word was: {self._said(failure)}.",
            retries,
        )


def _read(response: httpx2.Response, read: Callable[[dict[str, Any]], Turn]) -> Turn | Failure:
    after = retry_after_s(response.headers, time.time())
    try:
        raw = read_object(response.content)
        failure = failure_in(raw)
        return failure.model_copy(update={"retry_after_s": after}) if failure else read(raw)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        said = f"the answer is none in the form of this API ({type(error).__name__})"
        return Failure(message=said, retry_after_s=after)


def read_object(content: bytes) -> dict[str, Any]:
    """The JSON object in an answer. Raises ValueError or TypeError.

    Half a surrogate pair is no text and could be neither stored nor sent back: a question mark takes its place.
    """
    value = json.loads(content, parse_constant=_refuse)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        value = json.loads(text.encode(errors="replace"))
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _tried_again(request: httpx2.Request) -> int:
    """Both SDKs count in a header of each request how often it was tried before."""
    return int(request.headers.get("x-stainless-retry-count", 0))


def wait_before(number: int, asked_s: float | None) -> float:
    """How long to wait after failure ``number``, from 0: twice as long each time, up to a minute.

    A provider that names a time is taken at its word, but not for ever: one that asks for none would be flooded.
    """
    if asked_s is not None and number < TRUSTED:
        return asked_s
    longest = min(LONG_WAIT_S, FIRST_WAIT_S * 2.0 ** min(number, 10))
    return max(asked_s or 0.0, longest * random.uniform(0.75, 1.0))  # noqa: S311 - spreads retries, hides nothing


def _why(error: BaseException) -> str:
    """What lies at the bottom of a failed connection."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
