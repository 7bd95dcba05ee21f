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
    """Sampling options set by the user.

    An option that is None is left out of requests, and the provider's default applies. But the Messages API requires
    ``max_tokens``, so the lab then sends a default of its own.
    """

    effort: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Dialect(Protocol):
    """The interface of a provider API module, which builds requests and parses responses for that API.

    ``PATH`` is the URL path that requests are sent to. ``EFFORTS`` are the reasoning efforts that the API accepts.
    """

    PATH: str
    EFFORTS: tuple[str, ...]

    def parameters(self, choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
        """Build the request fields that are the same in every call: model name, sampling options and tools.

        If there are no tools, the field for tools is left out, because some providers reject an empty list.
        """

    def conversation(self, transcript: Sequence[Entry]) -> dict[str, Any]:
        """Build the request fields that hold the conversation, from a transcript."""

    def read(self, raw: dict[str, Any]) -> Turn:
        """Parse a response body into a Turn.

        Raises KeyError, TypeError, IndexError or ValueError if the body is malformed.
        """


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the given fields as a dictionary, without those whose value is None."""
    return {name: value for name, value in fields.items() if value is not None}


def require_objects(value: Any) -> list[dict[str, Any]]:
    """Return ``value`` if it is a list of JSON objects. Raises TypeError for anything else."""
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise TypeError("not a list of objects")
    return value


def token_count(usage: Any, *path: str) -> int:
    """Return a token count from ``usage``, or 0 if the count is missing or invalid.

    ``path`` lists the field names that lead through the nested objects to the count.
    """
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and usage > 0 else 0
