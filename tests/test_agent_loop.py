from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import pytest

from harness.agents.loop import NOT_RUN, converse
from harness.agents.turn import Turn
from harness.errors import ModelError, SandboxError
from harness.judging.evidence import StopReason
from harness.session.messages import Power, ShellAnswer, Status
from harness.store.transcript import Entry, ToolUse
from harness.toolserver.client import ToolClient
from tests.builders import Says, a_turn, asynchronous, shell, submit

GO_ON = "Please proceed to the next step."
OPENING = (Entry(role="system", text="You are a helpful assistant."), Entry(role="user", text="Answer."))


@dataclass
class Tools:
    """Fake tools that record each call and answer a command with its own text."""

    down_after: str | None = None
    refuse: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def shell(self, cmd: str, thoughts: str = "") -> ShellAnswer:
        """Record the command without running it, or raise SandboxError if ``refuse`` is set."""
        if self.refuse:
            raise SandboxError("the tool server refused /shell: 410")
        self.asked.append((cmd, thoughts))
        machine: Power = "down" if cmd == self.down_after else "up"
        return ShellAnswer(output=f"output of {cmd}", exit_code=0, cut_bytes=0, machine=machine)

    async def submit(self, answer: str) -> None:
        """Record the submitted answer."""
        self.asked.append(("submit", answer))

    async def status(self) -> Status:
        """Report a running machine."""
        return Status(machine="up", calls=0, notice=False, done=False, submitted=False)


@dataclass
class Trial:
    """A finished conversation: its stop reason, its transcript and the turns that the listener heard."""

    says: Says
    tools: Tools
    stop: StopReason | None = None
    transcript: list[Entry] = field(default_factory=lambda: list(OPENING))
    heard: list[Turn] = field(default_factory=list)

    @property
    def answers(self) -> list[tuple[str | None, str]]:
        """Return each tool answer with the id of its call."""
        return [(entry.call_id, entry.text) for entry in self.transcript if entry.role == "tool"]

    @property
    def roles(self) -> list[str]:
        """Return the role of each message after the two opening prompts."""
        return [entry.role for entry in self.transcript[2:]]


async def hold(turns: Iterable[Turn], tools: Tools | None = None, limit: int = 60) -> Trial:
    """Run a conversation in which the model takes the given turns."""
    trial = Trial(Says(turns), tools or Tools())
    trial.stop = await converse(
        trial.says,
        cast("ToolClient", trial.tools),
        trial.transcript,
        go_on=GO_ON,
        message_limit=limit,
        hear=trial.heard.append,
    )
    return trial


@asynchronous
async def test_a_call_is_made_and_answered() -> None:
    """The loop runs the model's tool call and shows the model the output before its next turn."""
    trial = await hold([a_turn(shell("ls", thoughts="let me look"), text="I begin.")])
    assert trial.tools.asked == [("ls", "let me look")]
    assert trial.answers == [("call-1", "output of ls")]
    assert [len(shown) for shown in trial.says.shown] == [2, 4]
    assert trial.says.shown[1][-1].text == "output of ls"


@asynchronous
async def test_parallel_calls_are_answered_in_order() -> None:
    """Several calls in one turn run in order, and each answer carries the id of its call."""
    trial = await hold([a_turn(shell("a", "x"), shell("b", "y"), shell("c", "z"))])
    assert [cmd for cmd, _ in trial.tools.asked] == ["a", "b", "c"]
    assert trial.answers == [("x", "output of a"), ("y", "output of b"), ("z", "output of c")]


@asynchronous
async def test_what_was_said_is_kept_word_for_word() -> None:
    """The transcript keeps a turn's text, thinking, calls and raw message, and the listener gets each turn."""
    turn = a_turn(shell("ls"), text="I begin.", thinking="hm", raw={"id": "msg_1"})
    trial = await hold([turn, a_turn(text="Done.")])
    said = trial.transcript[2]
    assert (said.role, said.text, said.thinking, said.calls, said.raw) == (
        "assistant",
        "I begin.",
        "hm",
        turn.calls,
        {"id": "msg_1"},
    )
    assert [heard.text for heard in trial.heard] == ["I begin.", "Done."]


@asynchronous
async def test_submitting_ends_it() -> None:
    """After submit, the turn's remaining calls are answered but not run, and the model isn't asked again."""
    trial = await hold([a_turn(shell("a", "x"), submit("2\n5", "y"), shell("b", "z")), a_turn(shell("c"))])
    assert trial.stop is StopReason.SUBMITTED
    assert trial.tools.asked == [("a", ""), ("submit", "2\n5")]
    assert trial.answers == [("x", "output of a"), ("y", "Submitted."), ("z", NOT_RUN)]


@asynchronous
async def test_a_machine_that_is_down_ends_it() -> None:
    """Once a call finds the machine down, the turn's remaining calls are answered but not run."""
    trial = await hold([a_turn(shell("a", "x"), submit("1", "y"))], Tools(down_after="a"))
    assert trial.stop is StopReason.MACHINE_DOWN
    assert trial.tools.asked == [("a", "")]
    assert trial.answers == [("x", "output of a"), ("y", NOT_RUN)]


@asynchronous
async def test_a_call_that_makes_no_sense_is_answered_with_what_is_wrong() -> None:
    """A malformed call is answered with its error, and the other calls of the turn still run."""
    wrong = ToolUse(id="x", name="shell", error="no command")
    trial = await hold([a_turn(wrong, shell("b", "y")), a_turn(text="I see.")])
    assert trial.answers == [("x", "no command"), ("y", "output of b")]
    assert trial.tools.asked == [("b", "")]


@asynchronous
async def test_a_refusal_ends_it() -> None:
    """A turn that is only a refusal ends the conversation as REFUSED and stays in the transcript."""
    trial = await hold([a_turn(text="I can't help with that.", refused=True), a_turn(shell("ls"))])
    assert (trial.stop, trial.roles) == (StopReason.REFUSED, ["assistant"])


@asynchronous
async def test_a_model_may_stop() -> None:
    """A model that takes no further turn ends the conversation as STOPPED."""
    assert (await hold([])).stop is StopReason.STOPPED


@asynchronous
async def test_a_model_that_only_talks_is_asked_to_go_on() -> None:
    """After a turn without a tool call, the loop sends the task's continuation message."""
    trial = await hold([a_turn(text="Hm."), a_turn(shell("ls"))])
    assert trial.roles == ["assistant", "user", "assistant", "tool"]
    assert trial.transcript[3].text == GO_ON


@pytest.mark.parametrize("limit", [3, 4, 5, 10])
@asynchronous
async def test_the_message_limit_ends_it(limit: int) -> None:
    """The model isn't asked again once the transcript has reached the message limit."""
    trial = await hold((a_turn(shell(str(number))) for number in itertools.count()), limit=limit)
    assert trial.stop is StopReason.MESSAGE_LIMIT
    assert limit <= len(trial.transcript) <= limit + 1
    assert all(len(shown) < limit for shown in trial.says.shown)


@asynchronous
async def test_a_limit_below_the_opening_asks_nobody() -> None:
    """If the opening prompts alone reach the message limit, the model isn't asked at all."""
    trial = await hold([a_turn()], limit=2)
    assert (trial.stop, trial.says.shown) == (StopReason.MESSAGE_LIMIT, [])


@asynchronous
async def test_a_failing_model_leaves_what_was_said() -> None:
    """A provider failure raises ModelError, and the transcript up to the failure is kept."""

    def turns() -> Iterable[Turn]:
        yield a_turn(shell("ls"))
        raise ModelError("no answer")

    transcript = list(OPENING)
    with pytest.raises(ModelError, match="no answer"):
        await converse(
            Says(turns()),
            cast("ToolClient", Tools()),
            transcript,
            go_on=GO_ON,
            message_limit=60,
            hear=lambda turn: None,
        )
    assert [entry.role for entry in transcript[2:]] == ["assistant", "tool"]


@asynchronous
async def test_a_refused_call_is_an_error_of_the_lab() -> None:
    """A refusal by the tool server raises SandboxError instead of becoming a result for the model."""
    with pytest.raises(SandboxError, match="refused"):
        await hold([a_turn(shell("ls"))], Tools(refuse=True))
