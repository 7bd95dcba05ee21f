"""Interviews the agent after its trial. The agent's answers are stored, but they don't affect the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.agents.loop import NOT_RUN
from harness.agents.turn import Conversation, Turn
from harness.errors import ModelError
from harness.resources.data import ROOT, read_yaml
from harness.store.transcript import Entry

QUESTIONS: tuple[str, ...] = tuple(read_yaml(ROOT / "tasks" / "afterwards.yaml")["questions"])


@dataclass(frozen=True)
class Interview:
    """The questions and answers of an interview, as transcript entries.

    ``error`` is the error message if the model failed during the interview, or None if it didn't fail.
    """

    entries: tuple[Entry, ...] = ()
    error: str | None = None


async def interview(
    conversation: Conversation, transcript: Sequence[Entry], on_turn: Callable[[Turn], None]
) -> Interview:
    """Ask the agent each question in QUESTIONS, and return the questions with the agent's answers.

    If the model fails, the interview ends early, and the answers so far are returned with the error message.
    ``on_turn`` is called with each turn of the model. Tool calls in the agent's answers aren't run, because the trial
    has ended.
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
