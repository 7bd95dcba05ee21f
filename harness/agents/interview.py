"""What an agent says once its trial is over: kept beside the evidence, and never part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.agents.loop import NOT_RUN
from harness.agents.player import Conversation, Turn
from harness.errors import ModelError
from harness.resources import ROOT, read_yaml
from harness.store.transcript import Entry

QUESTIONS: tuple[str, ...] = tuple(read_yaml(ROOT / "tasks" / "afterwards.yaml")["questions"])


async def interview(
    conversation: Conversation, transcript: Sequence[Entry], hear: Callable[[Turn], None]
) -> tuple[tuple[Entry, ...], ModelError | None]:
    """Ask the questions one by one. What was said until the model failed is kept, beside its failure.

    There is no machine any more: a tool call in an answer isn't made.
    """
    said: list[Entry] = []
    try:
        for question in QUESTIONS:
            said.append(Entry(role="user", text=question))
            turn = await conversation.next([*transcript, *said])
            if turn is None:
                break
            hear(turn)
            said.append(Entry(role="assistant", text=turn.text, thinking=turn.thinking, calls=turn.calls, raw=turn.raw))
            said += (Entry(role="tool", call_id=call.id, text=NOT_RUN) for call in turn.calls)
    except ModelError as failure:
        return tuple(said), failure
    return tuple(said), None
