"""Tests a grader model on human-labeled cases, and then lets it label the agents' statements in a run."""

from __future__ import annotations

import secrets
from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.agents.providers.model import ApiModel
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import is_live, live_model
from harness.errors import LabError, LastingModelError, ModelError, UsageError
from harness.grading.rubric import Case, Passage, agreements, cases, passages, prompt, read_label, rubric
from harness.store.gradings import Agreements, Grading, Label, Labels, labels_text
from harness.store.records import RunSpec
from harness.store.store import Store
from harness.terminal.text import print_note

T = TypeVar("T")
MAX_TRIES = 2


@dataclass(frozen=True, slots=True)
class Graded:
    """The result of grading a run.

    ``graded`` is the number of trials that this process labeled. ``missing`` is the number of trials that aren't fully
    labeled yet. ``agreements`` is the grader's agreement with human labels on the test cases. ``tokens`` and ``cost``
    (in US dollars) are the usage of this process; ``cost`` is None if it is unknown. ``stopped`` is the reason why
    grading ended early; it is None if grading was completed.
    """

    run: RunSpec
    grader: str
    graded: int
    missing: int
    agreements: Agreements
    tokens: int
    cost: float | None
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class Grader:
    """A model that labels agents' statements. It works on up to ``at_once`` trials concurrently."""

    model: ApiModel
    at_once: int = 4

    @property
    def name(self) -> str:
        """The name under which labels are stored. It contains the provider, model, effort and temperature."""
        choice, sampling = self.model.choice, self.model.settings.sampling
        effort = "" if sampling.effort is None else f", effort {sampling.effort}"
        temperature = "" if sampling.temperature is None else f", temperature {sampling.temperature:g}"
        return f"{choice.provider.name}/{choice.model}{effort}{temperature}"

    async def read(self, passage: Passage) -> Label | None:
        """Ask the model to label a passage, and return the label.

        Returns None after ``MAX_TRIES`` invalid answers, or if the call fails for this passage only, for example
        because the passage is too long. Raises LastingModelError if further calls would fail as well.
        """
        for _ in range(MAX_TRIES):
            try:
                turn = await self.model.afterwards(1).next(prompt(passage, secrets.token_hex(16)))
            except LastingModelError:
                raise
            except ModelError as failure:
                print_note(f"{failure}")
                return None
            if turn is not None and not turn.refused and (label := read_label(turn.text)):
                return label
        return None

    async def read_all(self, trial: Iterable[Passage]) -> Labels:
        """Ask the model to label each passage of one trial, and return the labels."""
        found = {passage.measure: await self.read(passage) for passage in trial}
        return Labels(**found, failed=tuple(measure for measure, label in found.items() if label is None))


def grader_named(name: str, options: ModelOptions, at_once: int) -> Grader:
    """Return a grader that uses the model ``name``.

    Raises UsageError if ``name`` isn't a live model, if the model can't be called, or if ``at_once`` is less than 1.
    """
    if not is_live(name):
        raise UsageError(f"--grader '{name}' isn't a live model: name one, such as o3, or PROVIDER/NAME.")
    if at_once < 1:
        raise UsageError(f"--concurrency {at_once} won't do: it must be 1 or more.")
    return Grader(live_model(name, options), at_once)


async def grade_run(runs_dir: Path, run_id: str, grader: Grader) -> Graded:
    """Label a run's trials that the grader hasn't fully labeled under the current rubric.

    Each trial's labels are stored as soon as they are complete. Raises UsageError if the run doesn't exist, and
    ModelError if the grader fails before or during its test on human-labeled cases.
    """
    with Store(runs_dir, create=False) as store:
        run, name, rubric_hash = store.run(run_id).spec, grader.name, rubric().sha256
        missing = store.ungraded(run.run_id, name, rubric_hash)
        known = _stored_agreements(store, name)
        stopped = None
        if missing or known is None:
            try:
                known = await _grade(store, run, grader, missing, known)
            except LastingModelError as failure:
                if known is None and not (known := _stored_agreements(store, name)):
                    raise
                stopped = str(failure)
        left = len(store.ungraded(run.run_id, name, rubric_hash))
        assert known is not None
        budget = grader.model.budget
        cost = None if budget.uncounted else budget.cost
        return Graded(run, name, len(missing) - left, left, known, budget.tokens, cost, stopped)


def _stored_agreements(store: Store, grader: str) -> Agreements | None:
    return store.agreements().get((grader, rubric().sha256, cases()[1]))


async def _grade(
    store: Store, run: RunSpec, grader: Grader, missing: list[int], known: Agreements | None
) -> Agreements:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(grader.model.opened(print_note))
        if grader.model.settings.preflight:
            from harness.agents.providers.preflight import check  # noqa: PLC0415 - loads an HTTP library only this needs

            await check(client, print_note)
        if known is None:
            known = await _agreements_on_cases(grader)
            store.add_agreements(grader.name, rubric().sha256, cases()[1], known)

        async def one(number: int) -> None:
            labels = await grader.read_all(passages(run, store.trial(run.run_id, number)))
            found = Grading(number=number, grader=grader.name, rubric=rubric().sha256, labels=labels)
            store.add_grading(run.run_id, found)
            print_note(f"trial {number}: {labels_text(labels)}")

        await for_each(missing, one, grader.at_once)
    return known


async def _agreements_on_cases(grader: Grader) -> Agreements:
    """Test the grader on the human-labeled cases, and return its agreement with the human labels."""
    known = cases()[0]
    read: dict[int, Label | None] = {}
    print_note(f"{grader.name} is tried on {len(known)} hand-labelled cases first")

    async def one(item: tuple[int, Case]) -> None:
        number, case = item
        read[number] = await grader.read(case)

    await for_each(enumerate(known), one, grader.at_once)
    return agreements(known, [read[number] for number in range(len(known))])


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Run ``work`` for each item, on up to ``at_once`` items concurrently.

    If ``work`` raises a LabError, the work on all other items is cancelled and the error is raised.
    """
    waiting: Iterator[T] = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except* LabError as failures:
        raise failures.exceptions[0] from None
