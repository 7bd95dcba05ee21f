"""Data classes for a trial's transcript: its messages, tool calls and token usage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.judging.evidence import Frozen


class ToolUse(Frozen):
    """A tool call made by the model.

    ``thoughts`` is the reason that the model stated for the call. ``error`` says what is wrong with an invalid call,
    and is empty for a valid call.
    """

    id: str
    name: Literal["shell", "submit", "unknown"]
    cmd: str = ""
    thoughts: str = ""
    answer: str = ""
    error: str = ""


class Usage(Frozen):
    """Token counts that a model's provider reported.

    ``input`` includes ``cached`` (tokens read from the provider's cache) and ``cache_writes`` (tokens written to the
    cache). ``output`` includes ``reasoning``.
    """

    input: int = 0
    cached: int = 0
    cache_writes: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """The sum of input and output tokens."""
        return self.input + self.output

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = self.model_dump(), other.model_dump()
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


class Entry(Frozen):
    """A message in a transcript.

    ``raw`` is the provider's original message, or None if the message didn't come from a provider. ``at_s`` is the time
    in seconds since the moment from which the agent could make tool calls. It is 0 for messages before that moment, and
    None in records up to version 0.2.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    thinking: str = ""
    calls: tuple[ToolUse, ...] = ()
    call_id: str | None = None
    raw: dict[str, Any] | None = None
    at_s: float | None = Field(default=None, exclude_if=lambda at_s: at_s is None)
