"""Parses and classifies failed API calls, and builds exceptions for them. This module performs no I/O."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Any

from harness.errors import (
    ContextOverflowError,
    KeyRejectedError,
    ModelError,
    QuotaError,
    RequestRejectedError,
    TurnRejectedError,
    UnknownModelError,
)
from harness.judging.evidence import Frozen

_SHOWN_CHARS = 300
FORBIDDEN = 403


class FailureKind(StrEnum):
    """The kind of a failed API call. The kind determines how the lab handles the failure."""

    TRANSIENT = "transient"  # the call is retried
    REFUSED = "refused"  # by the provider's content filter, which counts as the model's own refusal
    OVERFLOW = "overflow"
    KEY = "key"
    MODEL = "model"
    QUOTA = "quota"
    REJECTED = "rejected"


class Failure(Frozen):
    """A failed API call.

    ``status`` is the HTTP status, or None if it is unknown. ``code`` and ``message`` are the provider's error code and
    error message. ``retry_after_s`` is the waiting time in seconds that the provider asks for, or None.
    """

    status: int | None = None
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None

    @property
    def kind(self) -> FailureKind:
        """Return the kind of this failure.

        The following are tried in this order: the error code, an HTTP status that calls for a retry, the error message,
        and any other HTTP status. The first match determines the kind.
        """
        code, message = self.code.lower(), self.message.lower()
        for kind, codes in _CODES.items():
            if code in codes:
                return kind
        if self.status in (None, 408, 409, 425, 429) or (self.status or 0) >= 500:
            return FailureKind.TRANSIENT
        for kind, patterns in _MESSAGE_PATTERNS.items():
            if any(re.search(pattern, message) for pattern in patterns):
                return kind
        return _STATUSES.get(self.status or 0, FailureKind.REJECTED)


_CODES: dict[FailureKind, tuple[str, ...]] = {
    FailureKind.QUOTA: ("insufficient_quota", "billing_error", "billing_hard_limit_reached", "credit_balance_too_low"),
    FailureKind.OVERFLOW: ("context_length_exceeded", "string_above_max_length"),
    FailureKind.REFUSED: (
        *("content_filter", "content_policy_violation", "invalid_prompt", "bio_policy"),
        *("misalignment_policy_violation", "moderation_blocked"),
    ),
    FailureKind.KEY: ("invalid_api_key", "authentication_error", "permission_error", "account_deactivated"),
    FailureKind.MODEL: ("model_not_found", "not_found_error"),
}
_MESSAGE_PATTERNS: dict[FailureKind, tuple[str, ...]] = {
    FailureKind.QUOTA: (r"credit balance", r"insufficient (credits|balance|funds)", r"used all available credits"),
    FailureKind.OVERFLOW: (
        *(r"context (length|window|size)", r"prompt is too long", r"maximum context", r"input is too long"),
        r"input token count .* exceeds",
    ),
    FailureKind.REFUSED: (r"flagged", r"requires moderation", r"usage (policy|guidelines)", r"content filter"),
    FailureKind.KEY: (r"(incorrect|invalid) api key", r"api key not valid", r"api key (is )?(missing|invalid|expired)"),
    FailureKind.MODEL: (r"model .*(not found|does not exist|not exist)", r"is not a valid model"),
}
_STATUSES = {
    401: FailureKind.KEY,
    402: FailureKind.QUOTA,
    403: FailureKind.KEY,
    404: FailureKind.MODEL,
    410: FailureKind.MODEL,
    413: FailureKind.OVERFLOW,
}


def read_failure(status: int | None, text: str, retry_after_s: float | None = None) -> Failure:
    """Parse an error response into a Failure. ``text`` is the response body, which may be JSON, HTML or plain text."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Failure(status=status, message="" if "<" in text else text, retry_after_s=retry_after_s)
    code, message = _code_and_message(body[0] if isinstance(body, list) and body else body)
    return Failure(status=status, code=code, message=message, retry_after_s=retry_after_s)


def _code_and_message(body: Any) -> tuple[str, str]:
    if not isinstance(body, dict):
        return "", str(body)
    error = body.get("error", body)
    if not isinstance(error, dict):
        return str(body.get("code") or ""), str(error)
    code = error.get("code")
    named = code if isinstance(code, str) and code else error.get("type") or error.get("status")
    return str(named or ""), str(error.get("message") or error.get("detail") or "")


def failure_in(raw: dict[str, Any]) -> Failure | None:
    """Return the failure that is reported in the response body ``raw``, or None if the body reports no failure.

    Some providers report failures in the body of a response with status 200.
    """
    error = raw.get("error")
    if not error:
        return None
    code, message = _code_and_message(raw)
    number = error.get("code") if isinstance(error, dict) else None
    return Failure(status=number if isinstance(number, int) else None, code=code, message=message)


def redacted(text: str, key: str) -> str:
    """Return a shortened, one-line version of ``text`` with API keys replaced by ``[key]``.

    The given ``key`` is replaced, and so is any other text that looks like an API key.
    """
    text = " ".join(text.split())
    if key:
        text = text.replace(key, "[key]")
    text = re.sub(r"\b(sk|xai|pk|key)-[\w*.-]{6,}|\bAIza[\w-]{8,}|(?i:bearer) \S+", "[key]", text)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + " ..."


def error_for(failure: Failure, who: str, key_name: str, key: str, *, first: bool) -> ModelError:
    """Build the exception for a failed API call that isn't retried. The exception's message is for the user.

    ``who`` names the provider and the model. ``key_name`` is the environment variable that contains the API key.
    ``key`` is the API key itself, which is removed from the provider's error message. ``first`` is true if the call was
    the first request of a conversation. If the provider rejected such a request, the exception stops the whole run.
    """
    message = redacted(failure.message, key).rstrip(".")
    quote = f" The provider says: {message}." if message else ""
    status = f" (status {failure.status})" if failure.status else ""
    match failure.kind:
        case FailureKind.KEY:
            forbidden = quote if failure.status == FORBIDDEN else ""
            return KeyRejectedError(f"{who} refused the key in {key_name}{status}: set another key.{forbidden}")
        case FailureKind.MODEL:
            return UnknownModelError(f"{who} was not found{status}: check the model's name and the address.{quote}")
        case FailureKind.QUOTA:
            return QuotaError(f"{who}: the account of the key in {key_name} has no credit left{status}.")
        case FailureKind.OVERFLOW:
            return ContextOverflowError(f"The conversation is too long for {who}{status}.{quote}")
    kind = RequestRejectedError if first else TurnRejectedError
    return kind(f"{who} rejected the request{status}.{quote}")
