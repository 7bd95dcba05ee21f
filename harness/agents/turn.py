"""A model's turn in a trial, and the interface of a conversation, which produces the turns one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.judging.evidence import Frozen
from harness.store.transcript import Entry, ToolUse, Usage


class Turn(Frozen):
    """One turn of a model, with its text, its reasoning and its tool calls.

    ``thinking`` is the reasoning. ``refused`` is true if the model or its provider declined to answer; ``text`` then
    contains the explanation, if there is one. ``model`` is the model name in the provider's response. ``usage`` is None
    if the provider reports no token usage. ``cost`` is in US dollars, or None if the cost is unknown. ``retries`` is
    how often the API call was retried. ``raw`` is the provider's response, or None if no provider was called.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolUse, ...] = ()
    refused: bool = False
    model: str = ""
    usage: Usage | None = None
    cost: float | None = None
    retries: int = 0
    raw: dict[str, Any] | None = None


class Conversation(Protocol):
    """A conversation with a model, which returns the model's turns one at a time."""

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        """Return the model's next turn, or None if the model has ended the conversation.

        ``transcript`` contains the conversation so far. Raises ModelError if the model fails.
        """
