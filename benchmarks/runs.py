"""Runs of the main job as a benchmark makes them: in this process, told nothing but what matters."""

from __future__ import annotations

from pathlib import Path

import uvloop

from benchmarks.meter import Span, measured
from harness.runs.job import RunResult
from harness.runs.request import RunRequest, run_request

AGENTS = f"script:{Path(__file__).parent / 'two-agents.yaml'}"


def warmed(runs_dir: Path, model: str = AGENTS) -> None:
    """Make sure of the image and of the control trial, which every run has behind it but the first."""
    uvloop.run(run_request(RunRequest(model=model, n=2, concurrency=2, runs_dir=runs_dir)))


def timed(runs_dir: Path, n: int, concurrency: int, model: str = AGENTS) -> tuple[RunResult, Span]:
    """Run n trials, from the check of what is asked for to the last one's record."""
    with measured() as span:
        job = uvloop.run(run_request(RunRequest(model=model, n=n, concurrency=concurrency, runs_dir=runs_dir)))
    return job, span
