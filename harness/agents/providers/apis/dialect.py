"""The interface that each provider API module implements, and the helpers that these modules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.agents.player import Turn
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool
from harness.judging.evidence import Frozen
from harness.store.transcript import Entry

OPENAI_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Sampling(Frozen):
    """Sampling options set by the user; None leaves the option out of requests, so the provider's default applies."""

    effort: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Dialect(Protocol):
    """One provider API: builds the requests and parses the answers.

    ``PATH`` is the endpoint's path; ``EFFORTS`` are the reasoning efforts that the API accepts.
    """

    PATH: str
    EFFORTS: tuple[str, ...]

    def parameters(self, choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
        """Build the request fields that are the same in every call: model, sampling and tools.

        If there are no tools, the field is left out, because some providers reject an empty list.
        """

    def conversation(self, transcript: Sequence[Entry]) -> dict[str, Any]:
        """Build the request fields that hold the conversation, from a transcript."""

    def read(self, raw: dict[str, Any]) -> Turn:
        """Parse a response body into a Turn. Raises KeyError, TypeError, IndexError or ValueError if malformed."""


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields whose value isn't None."""
    return {name: value for name, value in fields.items() if value is not None}


def require_objects(value: Any) -> list[dict[str, Any]]:
    """Return ``value`` if it is a list of JSON objects. Raises TypeError for anything else."""
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise TypeError("not a list of objects")
    return value


def token_count(usage: Any, *path: str) -> int:
    """Return the token count at a path of nested fields, or 0 if it is missing or invalid."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and usage > 0 else 0
