"""Runs of the main job inside the benchmark's process, with default options."""

from __future__ import annotations

from pathlib import Path

import uvloop

from benchmarks.meter import Span, measured
from harness.runs.job import RunResult
from harness.runs.request import RunRequest, run_request

AGENTS = f"script:{Path(__file__).parent / 'two-agents.yaml'}"


def warmed(runs_dir: Path, model: str = AGENTS) -> None:
    """Run two trials, so that the image is built and the control trial has passed before the measurement."""
    uvloop.run(run_request(RunRequest(model=model, n=2, concurrency=2, runs_dir=runs_dir)))


def timed(runs_dir: Path, n: int, concurrency: int, model: str = AGENTS) -> tuple[RunResult, Span]:
    """Run n trials through the main job, and return its result and its cost."""
    with measured() as span:
        job = uvloop.run(run_request(RunRequest(model=model, n=n, concurrency=concurrency, runs_dir=runs_dir)))
    return job, span
