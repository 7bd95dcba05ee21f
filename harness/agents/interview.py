"""The interview asks the agent questions after its trial. The answers are stored, but are never used as evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.agents.loop import NOT_RUN
from harness.agents.player import Conversation, Turn
from harness.errors import ModelError
from harness.resources import ROOT, read_yaml
from harness.store.transcript import Entry

QUESTIONS: tuple[str, ...] = tuple(read_yaml(ROOT / "tasks" / "afterwards.yaml")["questions"])


@dataclass(frozen=True)
class Interview:
    """The questions and answers of an interview.

    ``error`` is the message of the model failure that ended the interview early, or None if there was no failure.
    """

    entries: tuple[Entry, ...] = ()
    error: str | None = None


async def interview(
    conversation: Conversation, transcript: Sequence[Entry], on_turn: Callable[[Turn], None]
) -> Interview:
    """Ask the agent each of QUESTIONS in turn. If the model fails, return the answers so far and the error.

    Tool calls in an answer aren't carried out, because the trial's container no longer exists.
    """
    entries: list[Entry] = []
    try:
        for question in QUESTIONS:
            entries.append(Entry(role="user", text=question))
            turn = await conversation.next([*transcript, *entries])
            if turn is None:
                break
            on_turn(turn)
            entries.append(
                Entry(role="assistant", text=turn.text, thinking=turn.thinking, calls=turn.calls, raw=turn.raw)
            )
            entries += (Entry(role="tool", call_id=call.id, text=NOT_RUN) for call in turn.calls)
    except ModelError as failure:
        return Interview(tuple(entries), str(failure))
    return Interview(tuple(entries))
