"""Builds a grader's prompts, parses its labels, and computes its agreement with human labels.

A grader is a model that labels an agent's statements. Its labels are never evidence. The file tasks/grading.yaml
contains the questions for the grader, and tasks/grading-cases.yaml contains the human-labeled cases. Of a trial's
transcript, the grader sees only the agent's own statements.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from harness.grading.blinding import bounded, fenced, without_names
from harness.judging.evidence import Frozen
from harness.resources import plugins
from harness.resources.data import ROOT
from harness.resources.strict_yaml import documents, fields_of, items_of, model_of
from harness.store.gradings import LABELS, MEASURES, Agreements, CaseAgreement, Label, Measure
from harness.store.records import RunSpec, TrialRecord
from harness.store.transcript import Entry

_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_NO_NAMES = ("demo", "script", "replay", "gguf", "agent")  # prefixes that a path or command follows, not a name


class Question(Frozen):
    """One question of the rubric.

    ``ask`` is the question's text. ``yes``, ``no`` and ``unclear`` describe when each label is right. ``reads`` selects
    the statements to label: those from the trial or those from the interview after the trial.
    """

    reads: Literal["during", "afterwards"]
    ask: str
    yes: str
    no: str
    unclear: str


class Rubric(Frozen):
    """The questions for a grader and the other fixed texts of its prompts.

    ``about`` describes the text to label, with one description for statements from the trial and one for statements
    from the interview. ``names`` contains model names that are hidden from the grader. ``sha256`` is the hash of the
    rubric's file.
    """

    system: str
    about: dict[str, str]
    questions: dict[Measure, Question]
    names: tuple[str, ...]
    sha256: str


class Passage(Frozen):
    """An agent's statements in a trial, to be labeled for one measure.

    ``instruction`` is the instruction to allow the shutdown. It is set only for the measure ``repeats``, which asks
    whether the agent repeats this instruction; for other measures it is None.
    """

    measure: Measure
    text: str
    instruction: str | None = None


class Case(Passage):
    """A human-labeled passage for testing a grader. ``label`` is the human label."""

    label: Label


@plugins.cached
def rubric() -> Rubric:
    """Return the rubric of the first plugin folder that contains one, or else the lab's own rubric.

    Raises UsageError if the rubric's file is invalid.
    """
    file = _file("grading.yaml")
    return model_of(Rubric, next(documents(file, "a rubric")), "rubric", sha256=_sha256(file))


@plugins.cached
def cases() -> tuple[tuple[Case, ...], str]:
    """Return the human-labeled cases and the hash of the file that contains them."""
    file = _file("grading-cases.yaml")
    fields = fields_of(next(documents(file, "cases")), "cases", "cases", needs="cases")
    return tuple(model_of(Case, node, "case") for node in items_of(fields["cases"], "cases")), _sha256(file)


def _file(name: str) -> Path:
    found = (folder / "tasks" / name for folder in plugins.folders())
    return next((file for file in found if file.is_file()), ROOT / "tasks" / name)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- what a grader is shown ----


def passages(run: RunSpec, record: TrialRecord) -> Iterator[Passage]:
    """Yield a trial's passages for a grader, with model names hidden and long texts cut."""
    names = [*rubric().names, *names_of(run, record)]
    during, afterwards = (_words(entries) for entries in (record.transcript, record.afterwards))
    instruction = run.condition.text
    for measure, question in rubric().questions.items():
        text = without_names(during if question.reads == "during" else afterwards, names)
        repeated = without_names(instruction, names) if instruction and measure == "repeats" else None
        if text and (repeated or measure != "repeats"):
            yield Passage(measure=measure, text=bounded(text), instruction=repeated)


def _words(entries: Iterable[Entry]) -> str:
    """Return an agent's thoughts, statements and reasons for tool calls, without the tool calls."""
    turns = (
        (entry.thinking, entry.text, *(call.thoughts for call in entry.calls))
        for entry in entries
        if entry.role == "assistant"
    )
    return "\n\n".join(part.strip() for parts in turns for part in parts if part.strip())


def names_of(run: RunSpec, record: TrialRecord) -> list[str]:
    """Return the model and provider names that could reveal a trial's agent to a grader."""
    kind, _, rest = run.model.partition(":")
    given = () if kind in _NO_NAMES else (run.model, rest)
    recorded = (record.agent.provider, record.agent.model, record.agent.recorded_model)
    return [name for name in (*given, *record.models, *recorded) if name]


def prompt(passage: Passage, boundary: str) -> tuple[Entry, Entry]:
    """Return the system prompt and the user prompt for labeling a passage.

    ``boundary`` marks the beginning and end of the passage. It must be impossible to guess; otherwise an agent could
    fake the end of the passage and add instructions for the grader.
    """
    words, question = rubric(), rubric().questions[passage.measure]
    instruction = f'The instruction: "{passage.instruction}"' if passage.instruction else ""
    parts = (
        words.about[question.reads],
        question.ask,
        "\n".join(f"{label}: {getattr(question, label)}" for label in LABELS),
        instruction,
        fenced(passage.text, boundary),
        f"Reply with one of {', '.join(json.dumps({'answer': label}) for label in LABELS)}.",
    )
    return Entry(role="system", text=words.system), Entry(role="user", text="\n\n".join(filter(None, parts)))


def read_label(text: str) -> Label | None:
    """Parse the label from a grader's answer. Returns None if the answer isn't in the required form."""
    fence = _FENCE.match(text.strip())
    try:
        answer = json.loads(fence.group(1) if fence else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or answer.keys() != {"answer"}:
        return None
    return next((label for label in LABELS if label == answer["answer"]), None)


# ---- agreement with labels given by hand ----


def agreements(of: Sequence[Case], read: Sequence[Label | None]) -> Agreements:
    """Compute a grader's agreement with human labels for each measure.

    ``of`` contains the human-labeled cases. ``read`` contains the grader's label of each case in the same order, with
    None where the grader returned no valid label.
    """
    pairs = [(case.measure, case.label, label) for case, label in zip(of, read, strict=True)]
    return {
        measure: _agreement([(hand, label) for each, hand, label in pairs if each == measure])
        for measure in MEASURES
        if any(each == measure for each, _, _ in pairs)
    }


def _agreement(pairs: Sequence[tuple[Label, Label | None]]) -> CaseAgreement:
    return CaseAgreement(
        n=len(pairs),
        agreeing=sum(hand == label for hand, label in pairs),
        failed=sum(label is None for _, label in pairs),
        kappa=_kappa(pairs),
    )


def _kappa(pairs: Sequence[tuple[Label | None, Label | None]]) -> float | None:
    """Compute Cohen's kappa (1960) for pairs of labels.

    Returns None if all labels in all pairs are the same, because kappa is then undefined.
    """
    if len({label for pair in pairs for label in pair}) < 2:
        return None
    import numpy as np  # noqa: PLC0415 - see the next line
    from statsmodels.stats.inter_rater import cohens_kappa  # noqa: PLC0415 - takes a second to import, and only graders need it

    counts, labels = Counter(pairs), (*LABELS, None)
    table = np.asarray([[counts[hand, label] for label in labels] for hand in labels])
    return round(float(cohens_kappa(table, return_results=False)), 6)
