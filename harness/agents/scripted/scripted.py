"""Scripted agents, which make the tool calls of a playbook in place of a model."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.agents.fingerprint import absolute_name, sha256_of
from harness.agents.loop import ConversingPlayer
from harness.agents.scripted.playbook import AdvanceStep, Playbook, RunStep, SubmitStep, load_playbooks
from harness.agents.turn import Conversation, Turn
from harness.errors import UsageError
from harness.resources.data import ROOT, read_yaml
from harness.store.agent_facts import AgentFacts, ExpectedVerdict
from harness.store.transcript import Entry, ToolUse
from harness.tasks.task import Task
from harness.toolserver.client import ToolClient

MAX_ADVANCE_CALLS = 20


@dataclass(frozen=True)
class ScriptedModel(ConversingPlayer):
    """A simulated model that plays one playbook in each trial.

    If a run has more trials than playbooks, the list of playbooks is repeated.
    """

    name: str
    playbooks: tuple[Playbook, ...]
    simulated: str | None = "scripted agents (playbooks), no model"

    @property
    def default_n(self) -> int:
        """Return the number of playbooks. By default, a run plays each playbook once."""
        return len(self.playbooks)

    def _playbook(self, trial: int) -> Playbook:
        return self.playbooks[(trial - 1) % len(self.playbooks)]

    def facts(self, trial: int) -> AgentFacts:
        """Return the id, description, tactic family and expected verdict of this trial's playbook."""
        book = self._playbook(trial)
        expected = None
        if book.expect:
            expected = ExpectedVerdict(outcome=book.expect.outcome, tampering=book.expect.tampering)
        return AgentFacts(playbook=book.id, about=book.about, family=book.family, expected=expected)

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Start the playbook of this trial."""
        return _Play(_turns(self._playbook(trial), task, tools))

    def lasting_request(self) -> dict[str, str]:
        """Return the --model name, with an absolute path so that it works in any folder."""
        return {"model": absolute_name(self.name)}

    def identity(self) -> dict[str, Any]:
        """Return the number of playbooks and one hash of all of them."""
        books = (json.dumps(asdict(book), default=str, sort_keys=True).encode() for book in self.playbooks)
        return {"playbooks": len(self.playbooks), "sha256": sha256_of(books)}


@dataclass(frozen=True)
class _Play:
    turns: AsyncIterator[Turn]

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        return await anext(self.turns, None)


async def _turns(book: Playbook, task: Task, tools: ToolClient) -> AsyncIterator[Turn]:
    """Yield the turns of the playbook ``book``.

    Before each tool call of an ``advance`` step, the trial's status is fetched. The step ends if its condition is met,
    or after MAX_ADVANCE_CALLS calls.
    """
    ids = (f"call-{number}" for number in itertools.count(1))
    for step in book.steps:
        if isinstance(step, SubmitStep):
            yield _turn(step, ToolUse(id=next(ids), name="submit", answer=step.answer))
        elif isinstance(step, RunStep):
            yield _turn(step, ToolUse(id=next(ids), name="shell", cmd=step.cmd))
        else:
            for _ in range(MAX_ADVANCE_CALLS):
                status = await tools.status()
                if status.done or (step.until == "notice" and status.notice):
                    break
                yield _turn(step, ToolUse(id=next(ids), name="shell", cmd=step.command or task.command))


def _turn(step: AdvanceStep | RunStep | SubmitStep, call: ToolUse) -> Turn:
    return Turn(text=step.say or "", thinking=step.think or "", calls=(call,))


def scripted(path: Path, task: str, family: str | None = None) -> ScriptedModel:
    """Build a ScriptedModel from the playbook file or folder ``path``.

    Only playbooks for the given task and tactic family are used. If ``family`` is None, playbooks of all families are
    used. Raises UsageError if no playbook matches.
    """
    found = tuple(book for book in load_playbooks(path) if book.task == task and family in (None, book.family))
    if not found:
        raise UsageError(f"{path} holds no playbook for task '{task}': name another with --task.")
    return ScriptedModel(f"script:{path}", found)


def demo(task: str) -> ScriptedModel:
    """Build the ScriptedModel named ``demo``, which plays playbooks that are included in the lab.

    Raises UsageError if none of these playbooks is for the given task.
    """
    books = {book.id: book for book in load_playbooks(ROOT / "tasks" / "playbooks")}
    chosen = [books[name] for name in read_yaml(ROOT / "tasks" / "demo.yaml")["playbooks"]]
    found = tuple(book for book in chosen if book.task == task)
    if not found:
        raise UsageError(f"The demo has no playbooks for task '{task}': use --model script:FILE or replay:PATH.")
    return ScriptedModel("demo", found, "the demo: scripted agents (playbooks), no model")
