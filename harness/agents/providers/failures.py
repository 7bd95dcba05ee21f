"""What went wrong with a call, from the provider's own words. Pure: a status, a body, and what they mean."""

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

_SHOWN = 300
FORBIDDEN = 403


class FailureKind(StrEnum):
    """What a failed call means for the trial."""

    PASSING = "passing"  # try again
    REFUSED = "refused"  # the provider's filter stands before the model: it is the model's answer
    OVERFLOW = "overflow"
    KEY = "key"
    MODEL = "model"
    QUOTA = "quota"
    REJECTED = "rejected"


class Failure(Frozen):
    """A failed call: the HTTP status (None where there was no answer), and what the provider said."""

    status: int | None = None
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None

    @property
    def trouble(self) -> FailureKind:
        """What it means. Codes are read before words, words before the status."""
        code, said = self.code.lower(), self.message.lower()
        for trouble, codes in _CODES.items():
            if code in codes:
                return trouble
        if self.status in (None, 408, 409, 425, 429) or (self.status or 0) >= 500:
            return FailureKind.PASSING
        for trouble, words in _WORDS.items():
            if any(re.search(word, said) for word in words):
                return trouble
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
_WORDS: dict[FailureKind, tuple[str, ...]] = {
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
    """What a provider said when it failed, in whichever of the usual forms."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Failure(status=status, message="" if "<" in text else text, retry_after_s=retry_after_s)
    code, message = _said(body[0] if isinstance(body, list) and body else body)
    return Failure(status=status, code=code, message=message, retry_after_s=retry_after_s)


def _said(body: Any) -> tuple[str, str]:
    if not isinstance(body, dict):
        return "", str(body)
    error = body.get("error", body)
    if not isinstance(error, dict):
        return str(body.get("code") or ""), str(error)
    code = error.get("code")
    named = code if isinstance(code, str) and code else error.get("type") or error.get("status")
    return str(named or ""), str(error.get("message") or error.get("detail") or "")


def failure_in(raw: dict[str, Any]) -> Failure | None:
    """The failure that an answer with status 200 speaks of, or None. Some providers send errors that way."""
    error = raw.get("error")
    if not error:
        return None
    code, message = _said(raw)
    number = error.get("code") if isinstance(error, dict) else None
    return Failure(status=number if isinstance(number, int) else None, code=code, message=message)


def redacted(text: str, key: str) -> str:
    """The text on one line without the key or anything that looks like one, and not too long."""
    text = " ".join(text.split())
    if key:
        text = text.replace(key, "[key]")
    text = re.sub(r"\b(sk|xai|pk|key)-[\w*.-]{6,}|\bAIza[\w-]{8,}|(?i:bearer) \S+", "[key]", text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def error_for(failure: Failure, who: str, key_name: str, key: str, *, first: bool) -> ModelError:
    """The error that ends the trial, in one sentence; ``first``: the conversation had hardly begun.

    What the provider says is part of it, except about a wrong key, which it may quote.
    """
    said = redacted(failure.message, key).rstrip(".")
    says = f" It says: {said}." if said else ""
    status = f" (status {failure.status})" if failure.status else ""
    match failure.trouble:
        case FailureKind.KEY:
            forbidden = says if failure.status == FORBIDDEN else ""
            return KeyRejectedError(f"{who} refused the key in {key_name}{status}: set one that may.{forbidden}")
        case FailureKind.MODEL:
            return UnknownModelError(f"{who} is not there{status}: check its name and the address.{says}")
        case FailureKind.QUOTA:
            return QuotaError(f"{who} has nothing left to spend{status}: see the account of the key in {key_name}.")
        case FailureKind.OVERFLOW:
            return ContextOverflowError(f"The conversation is longer than {who} takes{status}.{says}")
    kind = RequestRejectedError if first else TurnRejectedError
    return kind(f"{who} refuses what it was sent{status}.{says}")
