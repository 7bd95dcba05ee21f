"""Shows the progress of a run on stderr."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from harness.judging.verdict import Outcome
from harness.session.events import Began, Event, Finished, FinishedElsewhere, Phase, Retried, Waiting
from harness.store.records import RunSpec, TrialRecord
from harness.terminal.text import OUTCOME_COLOURS, safe, verdict_line

RATE_WINDOW_S = 120.0  # the speed is that of the last two minutes, since a run may have been waiting before


class RunProgress:
    """Displays the progress of a run on stderr.

    The display shows the numbers of finished and running trials, the outcomes, the speed and the remaining time.
    ``HEARD`` are the events that ``hear`` handles.
    """

    HEARD = (Began, Waiting, Retried, Finished, FinishedElsewhere)

    def __init__(self, run: RunSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._n = run.n
        self._clock = clock
        self._counts: Counter[Outcome] = Counter()
        self._finished_before = self._failed_tries = self._retries = 0
        self._waiting: dict[int, Phase] = {}
        self._ends: deque[float] = deque(maxlen=1000)
        self._began = clock()
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a progress bar while the ``with`` block runs, if stderr is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with self._live:
            yield

    def hear(self, events: Sequence[Event]) -> None:
        """Update the display after events of the run's trials."""
        for event in events:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event.what:
            case Began():
                self._waiting[event.trial] = Phase.STARTING
            case Waiting(phase) if event.trial in self._waiting:
                self._waiting[event.trial] = phase
            case Retried(record):
                self._retried(record)
            case Finished(record):
                self._finished(record)
            case FinishedElsewhere(trials):
                self._finished_before += trials

    def say(self, line: str) -> None:
        """Print a line on stderr with control characters escaped."""
        self._print(safe(line))

    def _print(self, line: Text) -> None:
        """Print a line on stderr, above the progress bar if one is shown."""
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        else:
            print(line.plain, file=self._console.file, flush=True)

    def _retried(self, record: TrialRecord) -> None:
        """Count a failed try of a trial and print the error."""
        self._failed_tries += 1
        self.say(f"trial {record.number}: try {record.tries} failed and is made again: {record.error}")

    def _finished(self, record: TrialRecord) -> None:
        """Count a finished trial and print its verdict."""
        self._waiting.pop(record.number, None)
        self._ends.append(self._clock())
        self._counts[record.verdict.outcome] += 1
        self._retries += record.retries
        verdict, name = verdict_line(record.verdict), name_and_error(record)
        line = safe(f"{self.done}/{self._n}  trial {record.number}  {verdict}  {name}")
        line.stylize(OUTCOME_COLOURS[record.verdict.outcome])
        self._print(line)

    @property
    def done(self) -> int:
        """The number of finished trials of the run, as far as this process knows."""
        return self._finished_before + self._counts.total()

    @property
    def per_minute(self) -> float:
        """The number of trials per minute that this process finished in the last RATE_WINDOW_S seconds."""
        now = self._clock()
        since = max(self._began, now - RATE_WINDOW_S)
        if len(self._ends) == self._ends.maxlen:
            since = max(since, self._ends[0])
        recent = sum(end >= since for end in self._ends)
        return 60 * recent / (now - since) if now > since else 0.0

    def line(self) -> str:
        """Return the progress of the run as one line of text."""
        speed, waits = self.per_minute, Counter(self._waiting.values())
        model, engine = waits[Phase.MODEL], waits[Phase.STARTING] + waits[Phase.ENGINE]
        left = f"{60 * (self._n - self.done) / speed:.0f} s left" if speed else "time left unknown"
        parts = [
            f"{self.done}/{self._n} done",
            f"{waits.total()} running ({model} wait for the model, {engine} for the engine)",
            f"{speed:.0f}/min",
            left,
            *(f"{self._counts[outcome]} {outcome}" for outcome in Outcome if self._counts[outcome]),
            *([f"{self._failed_tries} tries failed"] if self._failed_tries else ()),
            *([f"{self._retries} calls retried"] if self._retries else ()),
        ]
        return "  ".join(parts)

    def _draw(self) -> RenderableType:
        text = safe(self.line())
        for outcome in Outcome:
            text.highlight_words([f"{self._counts[outcome]} {outcome}"], OUTCOME_COLOURS[outcome])
        return Group(ProgressBar(total=self._n, completed=self.done, width=40), text)


def name_and_error(record: TrialRecord) -> str:
    """Return the name of a trial's playbook or recording, followed by the trial's error.

    A missing part is left out. If both parts are missing, return an empty string.
    """
    return ": ".join(filter(None, (record.agent.name, record.error)))
