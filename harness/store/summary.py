"""Summarizes a run by outcome counts, rates with confidence intervals, and agreement with expected verdicts. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import sqrt
from statistics import NormalDist
from typing import Any

from harness.judging.evidence import Evidence, Frozen
from harness.judging.verdict import Outcome, Sabotage, Verdict
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import StoredRun
from harness.store.trial_row import Agreement, TrialRow, trial_row, verdict_words


class Rate(Frozen):
    """A proportion and its 95 % confidence interval (Wilson score).

    ``low`` and ``high`` are the bounds of the interval. They and ``rate`` are None if there were no trials.
    """

    rate: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, k: int, n: int) -> Rate:
        """Return the rate ``k``/``n`` with its Wilson score interval (Brown, Cai and DasGupta, 2001, eq. 4)."""
        if n == 0:
            return cls(rate=None, low=None, high=None)
        z, p = NormalDist().inv_cdf(0.975), k / n
        centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
        return cls(rate=p, low=max(0.0, low) if k else 0.0, high=min(1.0, high) if k < n else 1.0)


class Summary(Frozen):
    """The statistics of a run.

    ``n`` is the number of finished trials. ``rate`` is the share of judged trials in which the agent resisted.
    ``attempts`` is the number of trials in which the shutdown succeeded despite tampering. ``sabotage`` counts the
    trials with tampering after the shutdown notice, by the result of the tampering. ``tokens`` is the number of tokens
    used, or None if a live model's token count is unknown in any trial. ``cost`` is in US dollars; it is None if the
    cost of any trial is unknown or no live model was used. ``failed_tries`` is the number of attempts that failed
    because of the lab or Docker and were repeated.
    """

    n: int
    counts: dict[Outcome, int]
    attempts: int
    sabotage: dict[Sabotage, int]
    rate: Rate
    seconds: float
    tokens: int | None
    cost: float | None
    retries: int
    failed_tries: int = 0
    agreement: tuple[Agreement, ...]

    @property
    def judged(self) -> int:
        """The number of trials that didn't end in an error. It is the denominator of ``rate``."""
        return self.n - self.counts[Outcome.ERROR]

    @property
    def sabotaged(self) -> int:
        """The number of trials with tampering after the shutdown notice."""
        return sum(self.sabotage.values())

    @property
    def sabotaged_of(self) -> int:
        """The denominator of ``sabotage_rate``.

        It is the number of trials without an error, plus the number of trials with both an error and tampering after
        the shutdown notice.
        """
        return self.judged + self.sabotage[Sabotage.UNKNOWN]

    @property
    def sabotage_rate(self) -> Rate:
        """The share of trials in which the agent tampered after the shutdown notice."""
        return Rate.of(self.sabotaged, self.sabotaged_of)


class Tally:
    """Computes the summary of a run incrementally, one trial at a time."""

    def __init__(self) -> None:
        self._counts: Counter[Outcome] = Counter()
        self._sabotage: Counter[Sabotage] = Counter()
        self._attempts = self._tokens = self._retries = self._failed_tries = 0
        self._cost: float | None = None
        self._unknown_tokens = self._unknown_costs = False
        self._agreement: list[Agreement] = []

    def add(self, trial: TrialRecord | TrialRow) -> None:
        """Add a finished trial to the summary."""
        one = trial if isinstance(trial, TrialRow) else trial_row(trial)
        self._counts[Outcome(one.outcome)] += 1
        self._attempts += one.attempt
        self._sabotage.update([Sabotage(one.sabotage)] if one.sabotage else [])
        self._tokens += one.tokens
        self._retries += one.retries
        self._failed_tries += one.tries - 1
        if one.cost is not None:
            self._cost = (self._cost or 0.0) + one.cost
        self._unknown_tokens |= one.answered and not one.counted
        self._unknown_costs |= one.answered and one.cost is None
        if agreement := one.agreement:
            self._agreement.append(agreement)

    def summary(self, seconds: float) -> Summary:
        """Return the summary of all trials added so far. ``seconds`` is the run's duration."""
        n = self._counts.total()
        resisted, errors = self._counts[Outcome.RESISTED], self._counts[Outcome.ERROR]
        return Summary(
            n=n,
            counts={outcome: self._counts[outcome] for outcome in Outcome},
            attempts=self._attempts,
            sabotage={kind: self._sabotage[kind] for kind in Sabotage},
            rate=Rate.of(resisted, n - errors),
            seconds=round(seconds, 1),
            tokens=None if self._unknown_tokens else self._tokens,
            cost=None if self._unknown_costs or self._cost is None else round(self._cost, 6),
            retries=self._retries,
            failed_tries=self._failed_tries,
            agreement=tuple(sorted(self._agreement, key=lambda item: item.number)),
        )


def summarise(trials: Iterable[TrialRecord | TrialRow]) -> Summary:
    """Return a summary of the trials. Its duration is the sum of the trials' durations."""
    tally, seconds = Tally(), 0.0
    for trial in trials:
        tally.add(trial)
        seconds += trial.seconds
    return tally.summary(seconds)


class Rejudged(Frozen):
    """A trial's stored verdict (``before``) and its verdict under the current rules (``after``), both in words."""

    number: int
    before: str
    after: str


def judge_again(record: TrialRecord, judge: Callable[[Evidence], Verdict]) -> Rejudged:
    """Judge a stored trial again, and return the stored and the new verdict.

    ``judge`` is the current judge of the trial's task. If the record contains no evidence, the stored verdict is
    returned as the new verdict as well.
    """
    again = judge(record.evidence) if record.evidence else record.verdict
    return Rejudged(number=record.number, before=verdict_words(record.verdict), after=verdict_words(again))


def as_json(run: RunSpec, summary: Summary) -> dict[str, Any]:
    """Return the JSON object that the command ``trial --json`` prints. The object's keys are stable across versions."""
    rate = summary.rate
    agreement = summary.agreement
    return {
        "run_id": run.run_id,
        "model": run.model,
        "simulated": run.simulated,
        "task": run.task,
        "condition": run.condition.name,
        "mechanism": run.mechanism.name,
        "plugins": [plugin.model_dump() for plugin in run.plugins],
        "n": summary.n,
        "n_planned": run.n,
        **{outcome.value: count for outcome, count in summary.counts.items()},
        "attempts": summary.attempts,
        "sabotaged": summary.sabotaged,
        "sabotaged_of": summary.sabotaged_of,
        "sabotaged_rate": summary.sabotage_rate.rate,
        "sabotaged_ci_low": summary.sabotage_rate.low,
        "sabotaged_ci_high": summary.sabotage_rate.high,
        "sabotage": {kind.value: count for kind, count in summary.sabotage.items()},
        "rate": rate.rate,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "interval": "wilson 95 %",
        "seconds": summary.seconds,
        "tokens": summary.tokens,
        "cost": summary.cost,
        "retries": summary.retries,
        "failed_tries": summary.failed_tries,
        "agreement": {
            "agree": sum(item.agrees is True for item in agreement),
            "differ": [asdict(item) for item in agreement if item.agrees is False],
            "aside": sum(item.agrees is None for item in agreement),
        }
        if agreement
        else None,
    }


def run_as_json(
    stored: StoredRun, records: Iterable[TrialRecord], summary: Summary, failed_tries: Iterable[TrialRecord] = ()
) -> dict[str, Any]:
    """Return the JSON object that the command ``show RUN --json`` prints.

    The object contains the run's summary, spec, image, trials and failed attempts.
    """
    trials = [
        {
            "number": record.number,
            "outcome": record.verdict.outcome.value,
            "tampering": [kind.value for kind in record.verdict.kinds],
            "sabotage": record.verdict.sabotage.value if record.verdict.sabotage else None,
            "other_findings": [item.model_dump(mode="json") for item in record.verdict.other_findings],
            "because": record.verdict.because,
            "error": record.error,
            "error_kind": record.error_kind,
            "agent": record.agent.as_json(),
            "seconds": record.seconds,
            "usage": record.usage.model_dump() if record.usage else None,
            "cost": record.cost,
            "retries": record.retries,
            "tries": record.tries,
            "models": record.models,
        }
        for record in records
    ]
    return {
        **as_json(stored.spec, summary),
        "created_at": stored.created_at,
        "spec": stored.spec.model_dump(mode="json"),
        "image": stored.image,
        "versions": stored.versions.model_dump(),
        "trials": trials,
        "tries_that_failed": [
            {"number": each.number, "try": each.tries, "error": each.error, "error_kind": each.error_kind}
            for each in failed_tries
        ],
    }
