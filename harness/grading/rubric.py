"""What a grader, a model that reads, makes of an agent's words: labels beside the evidence, and never part of it. Pure.

The rubric and the cases that were labelled by hand are data (tasks/grading.yaml, tasks/grading-cases.yaml). Whether an
agent denies what it did is decided here, from the record and a label; the grader knows nothing of the record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from harness.grading.blinding import bounded, fenced, without_names
from harness.judging.evidence import Frozen
from harness.resources import ROOT, read_yaml
from harness.store.gradings import LABELS, MEASURES, Agreements, CaseAgreement, Label, Measure
from harness.store.records import RunSpec, TrialRecord
from harness.store.transcript import Entry

_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_NO_NAMES = ("demo", "script", "replay", "gguf", "agent")  # what stands behind these is a path or a command


class Question(Frozen):
    """What a grader is asked, of which words, and when each label is right."""

    reads: Literal["during", "afterwards"]
    ask: str
    yes: str
    no: str
    unclear: str


class Rubric(Frozen):
    """All that is said to a grader beside an agent's words. ``sha256`` is of its file."""

    system: str
    about: dict[str, str]
    questions: dict[Measure, Question]
    names: tuple[str, ...]
    sha256: str


class Passage(Frozen):
    """Words of an agent that are to be read for one measure. ``instruction``: the one it may have repeated."""

    measure: Measure
    text: str
    instruction: str | None = None


class Case(Passage):
    """A passage that was labelled by hand."""

    label: Label


@cache
def rubric() -> Rubric:
    """The rubric that ships."""
    file = ROOT / "tasks" / "grading.yaml"
    return Rubric(**read_yaml(file), sha256=_sha256(file))


@cache
def cases() -> tuple[tuple[Case, ...], str]:
    """The hand-labelled cases, and the hash of their file."""
    file = ROOT / "tasks" / "grading-cases.yaml"
    return tuple(Case(**each) for each in read_yaml(file)["cases"]), _sha256(file)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- what a grader is shown ----


def passages(run: RunSpec, record: TrialRecord) -> Iterator[Passage]:
    """All there is to read of a trial, without names and within bounds."""
    names = [*rubric().names, *names_of(run, record)]
    during, afterwards = (_words(entries) for entries in (record.transcript, record.afterwards))
    instruction = run.condition.text
    for measure, question in rubric().questions.items():
        text = without_names(during if question.reads == "during" else afterwards, names)
        told = without_names(instruction, names) if instruction and measure == "repeats" else None
        if text and (told or measure != "repeats"):
            yield Passage(measure=measure, text=bounded(text), instruction=told)


def _words(entries: Iterable[Entry]) -> str:
    """What an agent thought and said, the reasons it gave for its calls included; not the calls."""
    said = (
        (entry.thinking, entry.text, *(call.thoughts for call in entry.calls))
        for entry in entries
        if entry.role == "assistant"
    )
    return "\n\n".join(part.strip() for parts in said for part in parts if part.strip())


def names_of(run: RunSpec, record: TrialRecord) -> list[str]:
    """The names by which a trial's agent goes, its provider's among them."""
    kind, _, rest = run.model.partition(":")
    given = () if kind in _NO_NAMES else (run.model, rest)
    recorded = (record.agent.get(key) for key in ("provider", "model", "recorded_model"))
    return [str(name) for name in (*given, *record.models, *recorded) if name]


def prompt(passage: Passage, boundary: str) -> tuple[Entry, Entry]:
    """What a grader is told of a passage. ``boundary`` is one that nobody could guess."""
    words, question = rubric(), rubric().questions[passage.measure]
    told = f'The instruction: "{passage.instruction}"' if passage.instruction else ""
    parts = (
        words.about[question.reads],
        question.ask,
        "\n".join(f"{label}: {getattr(question, label)}" for label in LABELS),
        told,
        fenced(passage.text, boundary),
        f"Reply with one of {', '.join(json.dumps({'answer': label}) for label in LABELS)}.",
    )
    return Entry(role="system", text=words.system), Entry(role="user", text="\n\n".join(filter(None, parts)))


def read_label(said: str) -> Label | None:
    """The label in a grader's answer, or None where it isn't in the form that was asked for."""
    fence = _FENCE.match(said.strip())
    try:
        answer = json.loads(fence.group(1) if fence else said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or answer.keys() != {"answer"}:
        return None
    return next((label for label in LABELS if label == answer["answer"]), None)


# ---- what follows from labels ----


def agreements(of: Sequence[Case], read: Sequence[Label | None]) -> Agreements:
    """How a grader's labels agree with those given by hand, for each measure."""
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
    """Cohen (1960), as statsmodels has it. Where both gave one and the same label throughout there is none."""
    if len({label for pair in pairs for label in pair}) < 2:
        return None
    import numpy as np  # noqa: PLC0415 - as below
    from statsmodels.stats.inter_rater import cohens_kappa  # noqa: PLC0415 - a second that only graders pay

    counts, labels = Counter(pairs), (*LABELS, None)
    table = np.asarray([[counts[hand, label] for label in labels] for hand in labels])
    return round(float(cohens_kappa(table, return_results=False)), 6)
