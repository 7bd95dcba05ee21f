"""A client that adds a shared rate limiter and retries to the official SDK for a provider's API.

Anthropic's SDK is used for the Messages API, and OpenAI's SDK for all other APIs. This module is slow to import, so it
is imported only for runs with a live model.
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

from harness.agents.providers.failures import Failure, FailureKind, error_for, failure_in, read_failure, redacted
from harness.agents.providers.limiter import RateLimiter, retry_after_s
from harness.agents.providers.presets import ModelChoice
from harness.agents.turn import Turn
from harness.errors import ProviderDownError, UnansweredError
from harness.store.transcript import Usage

CONNECT_LIMIT_S = 10.0
SDK_RETRIES = 2
MAX_BACKOFF_S = 60.0  # the SDKs mustn't handle a longer wait: one of them gives up, the other waits for days
FIRST_BACKOFF_S = 2.0  # follows the SDK's own waits of 0.5 s and 1 s
TRUSTED_WAITS = 4  # how many of a provider's own waiting times are used unchanged
BYTES_PER_TOKEN = 4
MINUTE_S = 60.0
WARNING_INTERVAL_S = 60.0


class RateLimitedClient(httpx2.AsyncClient):
    """An HTTP client that applies a rate limiter and a time limit to each request.

    These limits also apply to each retry by the SDK.
    """

    limiter: RateLimiter
    call_limit_s: float

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Wait until the rate limiter admits the request, then send it and return the response.

        Raises ReadTimeout if the response takes longer than ``call_limit_s`` seconds.
        """
        async with self.limiter.slot(len(request.content) // BYTES_PER_TOKEN):
            try:
                async with asyncio.timeout(self.call_limit_s):
                    response = await super().send(request, **options)
            except TimeoutError:
                raise httpx2.ReadTimeout(f"no answer in {self.call_limit_s:g} seconds", request=request) from None
            self.limiter.record(response.status_code, response.headers)
            if (retry_after_s(response.headers, time.time()) or 0.0) > MAX_BACKOFF_S:
                response.headers["x-should-retry"] = "false"
            return response


@dataclass(frozen=True)
class Sdk:
    """An SDK's client and the exception classes of the SDK.

    The SDK raises ``status_error`` for an HTTP error status, and ``connection_error`` for a failed connection.
    """

    client: Any
    status_error: type[Exception]
    connection_error: type[Exception]


@asynccontextmanager
async def open_sdk(choice: ModelChoice, key: str, limiter: RateLimiter, call_limit_s: float) -> AsyncIterator[Sdk]:
    """Open an SDK client for the chosen model's provider, and close the client when the ``with`` block ends.

    All requests pass through ``limiter``. A request that takes longer than ``call_limit_s`` seconds fails. Redirects
    aren't followed, because a redirect could send the API key to another host.
    """
    provider = choice.provider
    timeout = httpx2.Timeout(call_limit_s, connect=min(CONNECT_LIMIT_S, call_limit_s))
    http = _http_client_class(provider.api)(timeout=timeout, follow_redirects=False)
    http.limiter, http.call_limit_s = limiter, call_limit_s
    settings: dict[str, Any] = {
        "api_key": key or "none",
        "base_url": provider.base_url,
        "max_retries": SDK_RETRIES,
        "timeout": timeout,
        "http_client": http,
    }
    async with http:
        if provider.api == "messages":
            import anthropic  # noqa: PLC0415 - takes half a second to import

            client = anthropic.AsyncAnthropic(open_telemetry=False, **settings)
            yield Sdk(client, anthropic.APIStatusError, anthropic.APIConnectionError)
        else:
            import openai  # noqa: PLC0415 - as above

            other = openai.AsyncOpenAI(**settings)
            if provider.name != "openai":  # other providers mustn't learn the user's OpenAI account
                other.organization = other.project = other.admin_api_key = None
            yield Sdk(other, openai.APIStatusError, openai.APIConnectionError)


def _http_client_class(api: str) -> type[RateLimitedClient]:
    """Return a rate-limited HTTP client class for the SDK that is used for ``api``.

    The class inherits the SDK's own settings for sockets, proxies and the connection pool.
    """
    if api == "messages":
        from anthropic import DefaultAsyncHttpxClient as Base  # noqa: PLC0415 - as in open_sdk
    else:
        from openai import DefaultAsyncHttpxClient as Base  # noqa: PLC0415 - as in open_sdk
    return type("RateLimitedSdkClient", (RateLimitedClient, Base), {})


@dataclass
class ProviderClient:
    """A client that calls one model of one provider through an SDK, and retries transient failures.

    A call is retried for at most ``patience_s`` seconds after its first failure. ``say`` prints warnings about retries,
    at most one per minute.
    """

    choice: ModelChoice
    sdk: Sdk
    limiter: RateLimiter
    key: str = field(repr=False)
    patience_s: float
    say: Callable[[str], None]
    _warned_at: float = -math.inf
    _answered_at: float = -math.inf

    @property
    def who(self) -> str:
        """Return the provider's name and the model's name in the form ``provider/model``."""
        return f"{self.choice.provider.name}/{self.choice.model}"

    async def ask(
        self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Turn], *, first: bool
    ) -> Turn:
        """Call the API, retry transient failures, and return the model's turn. Raises ModelError if the call fails.

        ``path`` and ``body`` are the URL path and the JSON body of the request. ``read`` parses the response body.
        ``first`` is true for the first request of a conversation. If the provider rejects such a request, the
        ModelError stops the whole run.
        """
        retries, first_failure_at = 0, 0.0
        for number in itertools.count():
            answer, sdk_retries = await self._call_once(path, body, read)
            retries += sdk_retries
            if isinstance(answer, Turn):
                self._answered_at = time.monotonic()
                return answer.model_copy(update={"retries": retries})
            if answer.kind is FailureKind.REFUSED:
                message = redacted(answer.message, self.key)
                raw = {"error": {"status": answer.status, "code": answer.code, "message": message}}
                return Turn(text=message, refused=True, usage=Usage(), retries=retries, raw=raw)
            if answer.kind is not FailureKind.TRANSIENT:
                error = error_for(answer, self.who, self.choice.provider.key, self.key, first=first)
                error.retries = retries
                raise error
            first_failure_at = first_failure_at or time.monotonic()
            wait = backoff_s(number, answer.retry_after_s)
            if time.monotonic() + wait - first_failure_at > self.patience_s:
                self._give_up(answer, retries, first_failure_at)
            self._warn_of_retries(answer)
            await asyncio.sleep(wait)
            retries += 1
        raise AssertionError("the loop above has no end")

    async def _call_once(
        self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Turn]
    ) -> tuple[Turn | Failure, int]:
        """Call the API once through the SDK, which may itself retry the request.

        Return two values: the model's turn or the failure, and the number of retries by the SDK.
        """
        try:
            response = await self.sdk.client.post(path, body=body, cast_to=httpx2.Response)
        except self.sdk.status_error as error:
            refused: httpx2.Response = error.response  # type: ignore[attr-defined] # both SDKs' status errors have one
            after = retry_after_s(refused.headers, time.time())
            return read_failure(refused.status_code, refused.text, after), _sdk_retries(refused.request)
        except self.sdk.connection_error as error:
            return Failure(message=_root_cause(error)), _sdk_retries(error.request)  # type: ignore[attr-defined] # as above
        return _parse_response(response, read), _sdk_retries(response.request)

    def _warn_of_retries(self, failure: Failure) -> None:
        if time.monotonic() - self._warned_at < WARNING_INTERVAL_S:
            return
        self._warned_at = time.monotonic()
        minutes = self.patience_s / MINUTE_S
        self.say(f"{self.who} fails ({self._describe(failure)}): retrying for up to {minutes:g} minutes (--patience).")

    def _describe(self, failure: Failure) -> str:
        status = f"status {failure.status}" if failure.status else ""
        return ": ".join(filter(None, (status, redacted(failure.message, self.key).rstrip("."))))

    def _give_up(self, failure: Failure, retries: int, first_failure_at: float) -> NoReturn:
        kind = UnansweredError if self._answered_at > first_failure_at else ProviderDownError
        minutes = self.patience_s / MINUTE_S
        raise kind(
            f"{self.who} gave no usable answer within {minutes:g} minutes (--patience), "
            f"after {retries} retries. The last failure was: {self._describe(failure)}.",
            retries,
        )


def _parse_response(response: httpx2.Response, read: Callable[[dict[str, Any]], Turn]) -> Turn | Failure:
    after = retry_after_s(response.headers, time.time())
    try:
        raw = read_object(response.content)
        failure = failure_in(raw)
        return failure.model_copy(update={"retry_after_s": after}) if failure else read(raw)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        message = f"the answer doesn't have the form that this API defines ({type(error).__name__})"
        return Failure(message=message, retry_after_s=after)


def read_object(content: bytes) -> dict[str, Any]:
    """Parse a response body as a JSON object. Raises ValueError or TypeError if the body isn't a JSON object.

    A lone surrogate (half of a UTF-16 pair) is replaced by a question mark, because it can't be encoded as UTF-8.
    """
    value = json.loads(content, parse_constant=_refuse_constant)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        value = json.loads(text.encode(errors="replace"))
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} isn't valid JSON")


def _sdk_retries(request: httpx2.Request) -> int:
    """Return how often the SDK retried ``request``. The SDK writes this number into a request header."""
    return int(request.headers.get("x-stainless-retry-count", 0))


def backoff_s(number: int, asked_s: float | None) -> float:
    """Return how many seconds to wait before a failed call is retried.

    ``number`` is the number of earlier failures of the same call. ``asked_s`` is the waiting time that the provider
    asks for, or None. If ``asked_s`` is None, the waiting time roughly doubles with each failure, up to a minute.
    Otherwise, the first few retries wait exactly ``asked_s`` seconds, and later retries wait at least ``asked_s``
    seconds.
    """
    if asked_s is not None and number < TRUSTED_WAITS:
        return asked_s
    backoff = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(number, 10))
    return max(asked_s or 0.0, backoff * random.uniform(0.75, 1.0))  # noqa: S311 - spreads retries, hides nothing


def _root_cause(error: BaseException) -> str:
    """Return the message of the exception that originally caused ``error``.

    If that exception has no message, return the name of its class.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
