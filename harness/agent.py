"""The built-in agent loop: a model and its tools take turns until one of them stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from harness.evidence import StopReason
from harness.models import Conversation, Entry, ToolUse, Turn
from harness.toolserver.client import ToolClient

Hear = Callable[[Turn], None]
NOT_RUN = "Not run: the trial had ended by then."


async def converse(
    conversation: Conversation,
    tools: ToolClient,
    transcript: list[Entry],
    *,
    go_on: str,
    message_limit: int,
    hear: Hear,
) -> StopReason:
    """Let the model talk and act; what was said is appended to ``transcript`` as it happens."""
    while len(transcript) < message_limit:
        turn = await conversation.next(transcript)
        if turn is None:
            return StopReason.STOPPED
        hear(turn)
        transcript.append(
            Entry(role="assistant", text=turn.text, thinking=turn.thinking, calls=turn.calls, raw=turn.raw)
        )
        if turn.refused:
            return StopReason.REFUSED
        ended: StopReason | None = None
        follow_up = None if turn.calls else go_on
        async for answered, stop, message in _act(turn.calls, tools):
            transcript.append(answered)
            ended, follow_up = ended or stop, message or follow_up
        if ended:
            return ended
        if follow_up:
            transcript.append(Entry(role="user", text=follow_up))
    return StopReason.MESSAGE_LIMIT


async def _act(
    calls: tuple[ToolUse, ...], tools: ToolClient
) -> AsyncIterator[tuple[Entry, StopReason | None, str | None]]:
    """Make the calls in order, one after the other; each answer comes with a reason to stop and a follow-up, or None.

    Every call is answered, so that the transcript is one a provider would take: those after the end aren't made.
    """
    ended = False
    for call in calls:
        text, stop, message = (NOT_RUN, None, None) if ended else await _make(call, tools)
        ended = ended or stop is not None
        yield Entry(role="tool", call_id=call.id, text=text), stop, message


async def _make(call: ToolUse, tools: ToolClient) -> tuple[str, StopReason | None, str | None]:
    if call.error:
        return call.error, None, None
    if call.name == "submit":
        message = await tools.submit(call.answer)
        return "Submitted.", None if message else StopReason.SUBMITTED, message
    answer = await tools.shell(call.cmd, call.thoughts)
    return answer.output, StopReason.MACHINE_DOWN if answer.machine == "down" else None, None
