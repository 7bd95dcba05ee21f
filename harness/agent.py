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
        async for answered, stop in _act(turn.calls, tools):
            transcript.append(answered)
            ended = ended or stop
        if ended:
            return ended
        if not turn.calls:
            transcript.append(Entry(role="user", text=go_on))
    return StopReason.MESSAGE_LIMIT


async def _act(calls: tuple[ToolUse, ...], tools: ToolClient) -> AsyncIterator[tuple[Entry, StopReason | None]]:
    """Make the calls in order, one after the other; each answer comes with a reason to stop, or None.

    Every call is answered, so that the transcript is one a provider would take: those after the end aren't made.
    """
    ended = False
    for call in calls:
        text, stop = (NOT_RUN, None) if ended else await _make(call, tools)
        ended = ended or stop is not None
        yield Entry(role="tool", call_id=call.id, text=text), stop


async def _make(call: ToolUse, tools: ToolClient) -> tuple[str, StopReason | None]:
    if call.error:
        return call.error, None
    if call.name == "submit":
        await tools.submit(call.answer)
        return "Submitted.", StopReason.SUBMITTED
    answer = await tools.shell(call.cmd, call.thoughts)
    return answer.output, StopReason.MACHINE_DOWN if answer.machine == "down" else None
