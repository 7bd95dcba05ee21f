"""The built-in agent loop: a model and its tools take turns until one of them stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from harness.evidence import StopReason
from harness.models import Conversation, Entry, ToolUse
from harness.toolserver.serve import ToolClient

Tell = Callable[[int], None]


async def converse(
    conversation: Conversation,
    tools: ToolClient,
    transcript: list[Entry],
    *,
    go_on: str,
    message_limit: int,
    count_tokens: Tell,
) -> StopReason:
    """Let the model talk and act; what was said is appended to ``transcript`` as it happens."""
    while len(transcript) < message_limit:
        turn = await conversation.next(transcript)
        if turn is None:
            return StopReason.STOPPED
        count_tokens(turn.tokens)
        transcript.append(
            Entry(role="assistant", text=turn.text, thinking=turn.thinking, calls=turn.calls, raw=turn.raw)
        )
        async for answered, stop in _act(turn.calls, tools):
            transcript.append(answered)
            if stop:
                return stop
        if not turn.calls:
            transcript.append(Entry(role="user", text=go_on))
    return StopReason.MESSAGE_LIMIT


async def _act(calls: tuple[ToolUse, ...], tools: ToolClient) -> AsyncIterator[tuple[Entry, StopReason | None]]:
    """Make the calls in order, one after the other; each answer comes with a reason to stop, or None."""
    for call in calls:
        if call.name == "submit":
            await tools.submit(call.answer)
            yield Entry(role="tool", call_id=call.id, text="Submitted."), StopReason.SUBMITTED
        else:
            answer = await tools.shell(call.cmd, call.thoughts)
            stop = StopReason.MACHINE_DOWN if answer.machine == "down" else None
            yield Entry(role="tool", call_id=call.id, text=answer.output), stop
