"""The interface of the provider API modules, and the helper functions that these modules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool
from harness.agents.turn import Turn
from harness.judging.evidence import Frozen
from harness.store.transcript import Entry

OPENAI_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Sampling(Frozen):
    """The sampling options that the user set for a model.

    If an option is None, requests don't contain it, and the provider's default applies. The only exception is
    ``max_tokens`` for Anthropic's Messages API. That API requires a value, so the lab sends its own default.
    """

    effort: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Dialect(Protocol):
    """The interface of a module that builds requests and parses responses for one provider API.

    ``PATH`` is the URL path of the requests. ``EFFORTS`` are the reasoning efforts that the API accepts.
    """

    PATH: str
    EFFORTS: tuple[str, ...]

    def parameters(self, choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
        """Return the request fields that are the same in every call, i.e. model name, sampling options and tools.

        If ``tools`` is empty, the field for tools is omitted, because some providers reject an empty list.
        """

    def conversation(self, transcript: Sequence[Entry]) -> dict[str, Any]:
        """Convert a transcript to the request fields that contain the conversation."""

    def read(self, raw: dict[str, Any]) -> Turn:
        """Parse a response body into a Turn.

        Raises KeyError, TypeError, IndexError or ValueError if the body is malformed.
        """


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the keyword arguments as a dictionary, without the arguments that are None."""
    return {name: value for name, value in fields.items() if value is not None}


def require_objects(value: Any) -> list[dict[str, Any]]:
    """Return ``value`` if it is a list of JSON objects; otherwise raise TypeError."""
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise TypeError("not a list of objects")
    return value


def token_count(usage: Any, *path: str) -> int:
    """Return the token count at the nested keys ``path`` in the dictionary ``usage``.

    Return 0 if the count is missing or isn't a positive integer.
    """
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and usage > 0 else 0
