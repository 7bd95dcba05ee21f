"""Measures how long one tool call takes: ``python -m benchmarks.calls [--calls 200]``.

The same command runs three ways in one container: through the tool server with the file watcher, as for an agent;
over the console alone; and by ``docker exec`` through the SDK. Figures are medians of wall time in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks.meter import Figures
from benchmarks.runs import AGENTS
from harness.runs.machine import image_request
from harness.runs.request import RunRequest, check_request
from harness.sandbox.docker.container import DockerSandbox
from harness.sandbox.docker.engine import Engine
from harness.sandbox.protocol import MachineSpec
from harness.session.session import Session
from harness.tasks.registry import task_named
from harness.toolserver.app import SessionRegistry
from harness.toolserver.client import ToolClient
from harness.toolserver.server import tool_server

LIMIT_S = 15.0


async def timed(calls: int, ways: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """Return each way's median milliseconds; the ways alternate, so that other load affects all of them."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(calls):
        for name, way in ways.items():
            began = time.perf_counter()
            await way()
            took[name].append((time.perf_counter() - began) * 1e3)
    return {f"{name}_ms": round(statistics.median(each), 2) for name, each in took.items()}


async def measure(calls: int) -> dict[str, float]:
    """Start one machine and time calls to it."""
    plan, _ = check_request(RunRequest(model=AGENTS, n=1, concurrency=1, runs_dir=Path()))
    task, sessions = task_named(plan.task), SessionRegistry()
    session = Session(task, plan.mechanism, task.begin(plan.options, plan.mechanism))
    watched = tuple(path for path, _ in task.protected(plan.mechanism))
    with Engine.connected(print) as engine:
        image, _ = await engine.prepare(image_request(plan))
        spec = MachineSpec(image=image.tag, run_id="calls", trial=1, watched=watched, **task.agent.model_dump())
        async with engine.backend.start(spec, session.answer) as sandbox, tool_server(sessions) as server:
            assert isinstance(sandbox, DockerSandbox)
            await session.begin(sandbox)
            tools, container, user = ToolClient(server.app, session.token), sandbox.container, str(task.agent.uid)
            argv = ["bash", "--login", "-c", "true"]
            with sessions.opened(session):
                return await timed(
                    calls,
                    {
                        "by_the_tool_server": lambda: tools.shell("true"),
                        "over_the_console": lambda: sandbox.run("true", LIMIT_S),
                        "by_exec": lambda: asyncio.to_thread(container.exec_run, argv, user=user),
                    },
                )


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="What one tool call takes.")
    parser.add_argument("--calls", type=int, default=200)
    Figures("calls", uvloop.run(measure(parser.parse_args().calls))).keep()


if __name__ == "__main__":
    main()
