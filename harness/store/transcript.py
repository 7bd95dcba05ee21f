"""Transcripts: the messages of a trial, the tool calls in the messages, and the tokens that the model used."""

from __future__ import annotations

from typing import Any, Literal

from harness.judging.evidence import Frozen


class ToolUse(Frozen):
    """One tool call as the model made it.

    ``thoughts`` is the reason that the model gave for the call. ``error`` is empty if the call is valid; otherwise it
    tells the model what is wrong with the call.
    """

    id: str
    name: Literal["shell", "submit", "unknown"]
    cmd: str = ""
    thoughts: str = ""
    answer: str = ""
    error: str = ""


class Usage(Frozen):
    """Numbers of tokens that a model used, as its provider reported them.

    ``input`` includes ``cached`` and ``cache_writes``, which are the input tokens read from and written to the
    provider's cache. ``output`` includes ``reasoning``.
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
    """One message of a transcript.

    ``raw`` is the message exactly as the provider sent it; it is None if the message didn't come from a provider.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    thinking: str = ""
    calls: tuple[ToolUse, ...] = ()
    call_id: str | None = None
    raw: dict[str, Any] | None = None
