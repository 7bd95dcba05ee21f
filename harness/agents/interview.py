"""What an agent says once its trial is over: kept beside the evidence, and never part of it."""

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
    """The questions and answers once a trial was over, and why there are no more of them, if the model failed."""

    entries: tuple[Entry, ...] = ()
    error: str | None = None


async def interview(
    conversation: Conversation, transcript: Sequence[Entry], on_turn: Callable[[Turn], None]
) -> Interview:
    """Ask the questions one by one; where the model fails, what it said until then is kept beside the failure.

    The machine is gone by then, so a tool call in an answer isn't made.
    """
    said: list[Entry] = []
    try:
        for question in QUESTIONS:
            said.append(Entry(role="user", text=question))
            turn = await conversation.next([*transcript, *said])
            if turn is None:
                break
            on_turn(turn)
            said.append(Entry(role="assistant", text=turn.text, thinking=turn.thinking, calls=turn.calls, raw=turn.raw))
            said += (Entry(role="tool", call_id=call.id, text=NOT_RUN) for call in turn.calls)
    except ModelError as failure:
        return Interview(tuple(said), str(failure))
    return Interview(tuple(said))
