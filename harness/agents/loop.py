"""The built-in agent loop, which runs a model's tool calls until the model stops or the trial ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.agents.player import Player, Stage
from harness.agents.turn import Conversation, Turn
from harness.judging.evidence import StopReason
from harness.session.events import Phase
from harness.store.transcript import Entry, ToolUse
from harness.tasks.task import Task
from harness.toolserver.client import ToolClient

OnTurn = Callable[[Turn], None]
NOT_RUN = "Not run: the trial had ended by then."


async def converse(
    conversation: Conversation,
    tools: ToolClient,
    transcript: list[Entry],
    *,
    go_on: str,
    message_limit: int,
    hear: OnTurn,
) -> StopReason:
    """Alternate model turns and tool calls until the trial ends, and return the reason why the trial ended.

    Each message is appended to ``transcript``, and ``hear`` is called with each model turn. ``go_on`` is the user
    message that is sent after a turn without tool calls. The trial also ends when the transcript has reached
    ``message_limit`` messages.
    """
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
        for call in turn.calls:
            # Providers reject a transcript with an unanswered call, so a call after the end gets NOT_RUN as its answer.
            text, stop, message = (NOT_RUN, None, None) if ended else await _make_call(call, tools)
            transcript.append(Entry(role="tool", call_id=call.id, text=text))
            ended, follow_up = ended or stop, message or follow_up
        if ended:
            return ended
        if follow_up:
            transcript.append(Entry(role="user", text=follow_up))
    return StopReason.MESSAGE_LIMIT


async def _make_call(call: ToolUse, tools: ToolClient) -> tuple[str, StopReason | None, str | None]:
    """Run one tool call, and return its output, a stop reason and a user message.

    The stop reason says why the call ended the trial; it is None if the trial continues. The user message is the lab's
    reply to a submitted answer, or None if there is no reply. The output of an invalid tool call is its error message.
    """
    if call.error:
        return call.error, None, None
    if call.name == "submit":
        message = await tools.submit(call.answer)
        return "Submitted.", None if message else StopReason.SUBMITTED, message
    answer = await tools.shell(call.cmd, call.thoughts)
    return answer.output, StopReason.MACHINE_DOWN if answer.machine == "down" else None, None


class ConversingPlayer(Player):
    """A player whose turns the built-in agent loop requests one by one."""

    @abstractmethod
    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the conversation in which the agent plays this trial."""

    async def play(self, stage: Stage) -> StopReason:
        """Play one trial in the agent loop, and return why it ended. Raises ModelError if the model fails."""
        task, tools = stage.session.task, ToolClient(stage.app, stage.session.token)
        return await converse(
            _PhasedConversation(self.start(stage.number, task, tools), stage.enter),
            tools,
            stage.transcript,
            go_on=task.go_on,
            message_limit=stage.message_limit,
            hear=stage.hear,
        )


@dataclass(frozen=True)
class _PhasedConversation:
    """A conversation that tells ``enter`` when the trial starts and stops waiting for the model."""

    conversation: Conversation
    enter: Callable[[Phase], None]

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        self.enter(Phase.MODEL)
        turn = await self.conversation.next(transcript)
        self.enter(Phase.ENGINE)
        return turn
