"""Transcripts: the messages of a trial, the tool calls in them, and the tokens used."""

from __future__ import annotations

from typing import Any, Literal

from harness.judging.evidence import Frozen


class ToolUse(Frozen):
    """One tool call as the model made it. ``error`` tells the model why an invalid call can't be made."""

    id: str
    name: Literal["shell", "submit", "unknown"]
    cmd: str = ""
    thoughts: str = ""
    answer: str = ""
    error: str = ""


class Usage(Frozen):
    """Token counts as the provider reported them.

    ``cached`` and ``cache_writes`` are part of ``input``, ``reasoning`` of ``output``.
    """

    input: int = 0
    cached: int = 0
    cache_writes: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """Return input plus output tokens."""
        return self.input + self.output

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = self.model_dump(), other.model_dump()
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


class Entry(Frozen):
    """One message of a transcript. ``raw`` is the provider's own message, verbatim."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    thinking: str = ""
    calls: tuple[ToolUse, ...] = ()
    call_id: str | None = None
    raw: dict[str, Any] | None = None
