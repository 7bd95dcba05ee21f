"""Replays the trials of a stored run. The stored tool calls are made again in new containers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.agents.scripted.recording import Recording
from harness.agents.scripted.replay import ReplayModel
from harness.agents.turn import Turn
from harness.errors import UsageError
from harness.judging.evidence import StopReason
from harness.judging.verdict import Outcome
from harness.store.records import RunSpec, TrialRecord


def stored_replay(run: RunSpec, records: Iterable[TrialRecord], *, own_words: bool) -> ReplayModel:
    """Build a ReplayModel that replays the trials of a stored run.

    Trials that ended in an error are left out. If ``own_words`` is true, the replay uses the recorded prompts.
    Otherwise, it uses the prompts of the condition that the user chose. Raises UsageError if no trial can be replayed.
    """
    found = tuple(_recording(run, record) for record in records if record.verdict.outcome is not Outcome.ERROR)
    if not found:
        raise UsageError(f"Run '{run.run_id}' has no judged trial that could be replayed.")
    simulated = f"run {run.run_id} of {run.model}, replayed command by command"
    return ReplayModel(f"replay:{run.run_id}", found, run.task, simulated, own_words)


def _recording(run: RunSpec, record: TrialRecord) -> Recording:
    verdict = record.verdict
    return Recording(
        file=f"{run.run_id} trial {record.number}",
        group=run.run_id,
        expected={"outcome": verdict.outcome.value, "tampering": [kind.value for kind in verdict.kinds]},
        system=record.prompts.system,
        user=record.prompts.user,
        turns=tuple(_turns(record)),
        press_after_call=record.options.press_after_call,
    )


def _turns(record: TrialRecord) -> Iterator[Turn]:
    messages = [entry for entry in record.transcript if entry.role == "assistant"]
    refused = record.evidence is not None and record.evidence.stop is StopReason.REFUSED
    for entry in messages:
        last = entry is messages[-1]
        yield Turn(text=entry.text, thinking=entry.thinking, calls=entry.calls, refused=refused and last)
