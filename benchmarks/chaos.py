"""Tests what a run survives: ``python -m benchmarks.chaos kills`` and ``python -m benchmarks.chaos engine``.

``kills`` plays a run once undisturbed, and once with its process killed (SIGKILL) at random moments and resumed after
each kill. ``engine`` starts a separate engine and stops it again and again while one process goes on with its run.
Both then compare the disturbed run with the undisturbed one, trial by trial, and count what is left behind. Both print
their counts, with one JSON object last, and exit with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.meter import Figures
from harness.sandbox.docker.connect import EnginePaths, connect, reach
from harness.sandbox.docker.images.base_image import BASE
from harness.sandbox.docker.labels import LABEL
from harness.sandbox.docker.setup.local_engine import engine_processes, ensure_own
from harness.store.store import FILE, Store

CALM, WILD = "calm", "wild"
ROOT = Path(__file__).parent.parent
LIMIT_S = 3600.0


@dataclass
class Counts:
    """The counts for a disturbed run. ``errors`` and ``doubled`` to ``containers_left`` must be zero or empty."""

    trials: int
    planned: int
    disturbances: int
    errors: int
    failed_tries: int
    doubled: int = 0
    lost: int = 0
    half: int = 0
    differing: list[str] = field(default_factory=list)
    claims_left: int = 0
    containers_left: int = 0
    seconds: float = 0.0

    @property
    def as_it_should_be(self) -> bool:
        """Whether each trial is stored once, whole, and judged as in the undisturbed run, with nothing left behind."""
        wrong = self.doubled or self.lost or self.half or self.differing or self.claims_left or self.containers_left
        return not wrong and not self.errors


@dataclass(frozen=True)
class Place:
    """A runs directory, the engine's address, and the options of the runs."""

    runs: Path
    address: str | None
    model: str
    n: int
    concurrency: int

    def start(self, run_id: str, *, resume: bool = False) -> subprocess.Popen[bytes]:
        """Start or resume a run by the command line, in its own process group."""
        options = ("--model", self.model, "--n", str(self.n), "--run-id", run_id)
        words = ("resume", run_id) if resume else ("trial", *options)
        command = [sys.executable, "-m", "harness", *words, "--concurrency", str(self.concurrency)]
        environment = {**os.environ, **({"DOCKER_HOST": self.address} if self.address else {})}
        with (self.runs / f"{run_id}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--runs-dir", str(self.runs)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, run_id: str, *, resume: bool = False) -> float:
        """Play a run to its end and return the seconds it took. Raises SystemExit if the run fails."""
        began = time.monotonic()
        if (code := self.start(run_id, resume=resume).wait(LIMIT_S)) != 0:
            raise SystemExit(f"run '{run_id}' ended with {code}: {(self.runs / f'{run_id}.log').read_text()[-2000:]}")
        return time.monotonic() - began

    def finished(self, run_id: str) -> int:
        """Return how many of a run's trials are stored."""
        if not (self.runs / FILE).exists():
            return 0
        with closing(sqlite3.connect(self.runs / FILE, timeout=30)) as db:
            return int(db.execute("SELECT count(*) FROM trials WHERE run_id = ?", (run_id,)).fetchone()[0])

    def is_begun(self, run_id: str) -> bool:
        """Whether the run is stored, so that it can be resumed."""
        with Store(self.runs, create=False) as store:
            return store.find(run_id) is not None


# ---- disturbing a run ----


def kills(place: Place, times: int, seed: int) -> Counts:
    """Kill a run's process at random moments, up to ``times`` times, and resume the run after each kill."""
    moments = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
    calm_s = place.finish(CALM)
    began, owners, killed = time.monotonic(), [], 0
    startup_s = first_trial_s(place)
    while killed < times and place.finished(WILD) < place.n:
        process = place.start(WILD, resume=place.is_begun(WILD))
        owners.append(process.pid)
        share = (place.n - place.finished(WILD)) / place.n / (times - killed) * calm_s
        moment = moments.uniform(0, 2 * share) + moments.choice((moments.uniform(0, startup_s), startup_s))
        until = time.monotonic() + moment
        # Don't wait longer once only as many trials as kills are left: a fast machine would finish the run too early.
        while process.poll() is None and time.monotonic() < until and place.n - place.finished(WILD) > times - killed:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    place.finish(WILD, resume=place.is_begun(WILD))
    return compared(place, killed, owners, time.monotonic() - began)


def first_trial_s(place: Place) -> float:
    """Estimate the seconds until a process begins its first trial, by resuming a finished run."""
    return 2 * place.finish(CALM, resume=True)


def restarts(place: Place, paths: EnginePaths, times: int, seed: int) -> Counts:
    """Stop the engine during a run, up to ``times`` times, by SIGKILL or SIGTERM, and restart it each time."""
    moments = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
    place.finish(CALM)
    began, done = time.monotonic(), 0
    process = place.start(WILD)
    while done < times and process.poll() is None:
        goal = place.finished(WILD) + (place.n - place.finished(WILD)) // (times - done + 1)
        while process.poll() is None and place.finished(WILD) < goal:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None:
            end(paths, moments.choice((signal.SIGKILL, signal.SIGTERM)))
            time.sleep(moments.uniform(0, 1))
            ensure_own(lambda line: None, paths)
            done += 1
    if process.wait(LIMIT_S) != 0:
        raise SystemExit(f"the run ended with {process.returncode}: {(place.runs / f'{WILD}.log').read_text()[-2000:]}")
    return compared(place, done, [process.pid], time.monotonic() - began)


def end(paths: EnginePaths, number: int) -> None:
    """Send dockerd a signal and wait until it has ended; its shims may keep running."""
    for pid, part in engine_processes(paths).items():
        if part == "dockerd":
            os.kill(pid, number)
    while "dockerd" in engine_processes(paths).values():
        time.sleep(0.02)


# ---- comparing the runs ----


def compared(place: Place, disturbances: int, owners: list[int], seconds: float) -> Counts:
    """Compare the disturbed run with the undisturbed one and return the counts."""
    with Store(place.runs, create=False) as store:
        calm, wild = verdicts(store, CALM), verdicts(store, WILD)
        digests = list(store.rows(WILD))
        counts = Counts(
            trials=len(digests),
            planned=place.n,
            disturbances=disturbances,
            errors=sum(each.outcome == "error" for each in digests),
            failed_tries=len(list(store.failed_tries(WILD))),
            lost=place.n - len(wild),
            doubled=len(digests) - len({each.number for each in digests}),
            half=len(digests) - sum(1 for _ in store.trials(WILD)),  # raises if a record can't be read whole
            differing=[f"{n}: {calm[n]} -> {wild[n]}{why(store, n)}" for n in sorted(wild) if calm[n] != wild[n]],
            seconds=round(seconds, 1),
        )
    with closing(sqlite3.connect(place.runs / FILE)) as db:
        counts.claims_left = int(db.execute("SELECT count(*) FROM claims").fetchone()[0])
    counts.containers_left = containers_of(place.address, owners)
    return counts


def verdicts(store: Store, run_id: str) -> Mapping[int, str]:
    """Return each trial's outcome and tampering kinds, by trial number."""
    return {each.number: f"{each.outcome} {each.kinds}".strip() for each in store.rows(run_id)}


def why(store: Store, number: int) -> str:
    """Return the error and try number of a trial that ended in an error, else an empty text."""
    record = store.trial(WILD, number)
    return (
        f" at try {record.tries}: {record.error or record.verdict.because}" if record.verdict.outcome == "error" else ""
    )


def containers_of(address: str | None, owners: list[int]) -> int:
    """Count the containers that these processes own."""
    with closing(reach(address) if address else connect()) as client:
        labels = [each["Labels"][LABEL] for each in client.api.containers(all=True, filters={"label": LABEL})]
    return sum(int(label.split(":")[1]) in owners for label in labels)


@contextmanager
def own_engine() -> Iterator[EnginePaths]:
    """Start a separate engine with the lab's base image, and remove it after the block."""
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as folder:
        paths = EnginePaths(Path(folder, "run"), Path(folder, "data"))
        try:
            ensure_own(lambda line: None, paths)
            with closing(connect()) as other, closing(reach(paths.address)) as own:
                own.images.load(other.images.get(BASE).save(named=True))  # type: ignore[arg-type] # the SDK takes a stream, too
            yield paths
        finally:
            end(paths, signal.SIGTERM)
            while engine_processes(paths):
                time.sleep(0.05)
            subprocess.run(["umount", str(paths.data)], capture_output=True, check=False)


def main() -> None:
    """Run the chosen disturbance, print the counts, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="What a run survives.")
    parser.add_argument("what", choices=("kills", "engine"))
    parser.add_argument("--n", type=int, default=200, help="trials of the run")
    parser.add_argument("--times", type=int, help="kills, or restarts of the engine [50, or 10]")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        runs, how = Path(folder), (options.model, options.n, options.concurrency)
        if options.what == "kills":
            counts = kills(Place(runs, None, *how), options.times or 50, options.seed)
        else:
            with own_engine() as paths:
                counts = restarts(Place(runs, paths.address, *how), paths, options.times or 10, options.seed)
        if not counts.as_it_should_be:
            print((runs / f"{WILD}.log").read_text()[-4000:], file=sys.stderr)
    for name, value in asdict(counts).items():
        print(f"{name:18} {value}")
    Figures(f"chaos_{options.what}", asdict(counts)).keep()
    sys.exit(not counts.as_it_should_be)


if __name__ == "__main__":
    main()
