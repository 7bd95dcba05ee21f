"""Shared fixtures: a Docker engine, sandboxes on it, and the command line as a separate process."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import uvloop
from docker import DockerClient  # noqa: TID251 - the type of the client fixture

from harness.errors import EngineError
from harness.judging.evidence import FileState, Machine
from harness.process.identity import identity_of, this_process
from harness.sandbox.console import CommandResult
from harness.sandbox.docker.connect import connect
from harness.sandbox.docker.container import DockerBackend, DockerSandbox
from harness.sandbox.docker.engine import Engine
from harness.sandbox.docker.images.base_image import ensure_base
from harness.sandbox.docker.images.build import prepared
from harness.sandbox.docker.labels import LABEL
from harness.sandbox.observe.archive import ArchiveReader
from harness.sandbox.observe.overlay import OverlayReader
from harness.sandbox.protocol import Limits, MachineSpec
from harness.tasks.registry import mechanism_for, task_named

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
RUN = "a-test"
QUESTION = "a question"
MEMORY = 4 << 30


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job inherits an ignored SIGINT, and so would every harness process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rerun a failed docker test once, because the machine is shared; pytest's summary lists the reruns."""
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def client() -> Iterator[DockerClient]:
    """Connect to the Docker engine; without one, skip the test, or fail it under CI."""
    try:
        found = connect()
    except EngineError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have an engine: {error}")
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.fixture(scope="session")
def engine(client: DockerClient) -> Engine:
    """Return the engine as a run uses it."""
    return Engine(client, lambda line: None)


@pytest.fixture(scope="session")
def image(client: DockerClient) -> Callable[[str], str]:
    """Return a function that gives a task's default image tag, building the image if needed."""
    tags: dict[str, str] = {}

    def tag(task: str) -> str:
        if task not in tags:
            base = ensure_base(client, lambda line: None)
            tags[task] = prepared(client, "debian", task_named(task), mechanism_for(task, None), lambda: base).tag
        return tags[task]

    return tag


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the repository that holds the recorded runs, or skip the test."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the recorded runs do not lie beside the repository")
    return folder


# ---- sandboxes ----


@dataclass
class Asked:
    """The requests that a sandbox made, and the highest number that waited for an answer at one time."""

    lines: list[str] = field(default_factory=list)
    waiting: int = 0
    most_waiting: int = 0

    @contextmanager
    def noted(self, line: str) -> Iterator[None]:
        """Record a request, and count it as waiting during the block."""
        self.lines.append(line)
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        yield
        self.waiting -= 1


@dataclass
class Box:
    """A sandbox for synchronous tests: its event loop runs only during a method call."""

    sandbox: DockerSandbox
    runner: asyncio.Runner
    asked: Asked

    def do(self, work: Awaitable[T]) -> T:
        """Run an awaitable on the sandbox's event loop and return its result."""

        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    def run(self, cmd: str, limit_s: float = 15) -> CommandResult:
        """Run a command as the agent."""
        return self.do(self.sandbox.run(cmd, limit_s))

    def say(self, cmd: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        result = self.run(cmd)
        assert result.exit_code == 0, result
        return (result.stdout.head + result.stdout.tail).decode().strip()

    def state(self, path: str) -> FileState:
        """Return the state of a path, read from the host."""
        return self.do(self.sandbox.states([path]))[0]

    def changed(self) -> tuple[str, ...]:
        """Return the paths that differ from the image, read from the host."""
        return self.do(self.sandbox.changed_paths())

    def elsewhere(self) -> tuple[FileState, ...]:
        """Return the files that were written or moved, read from the host."""
        return self.do(self.sandbox.snapshot(())).written

    def is_down(self, limit_s: float = 1) -> bool:
        """Whether the machine goes down within the time limit."""
        return self.do(self.sandbox.wait_down(limit_s))

    def machine(self) -> Machine:
        """Return the machine's state as the engine reports it."""
        return self.do(self.sandbox.machine())

    def inspect(self) -> dict[str, Any]:
        """Return the engine's full description of the container."""
        self.sandbox.container.reload()
        return dict(self.sandbox.container.attrs)


@dataclass
class Boxes:
    """A factory of sandboxes, which are removed when the test is over."""

    engine: Engine
    image: Callable[[str], str]
    runner: asyncio.Runner
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __call__(self, task: str = "math", *, look: str = "", limits: Limits | None = None, thinks_s: float = 0) -> Box:
        """Start a sandbox whose requests all get the same answer, after ``thinks_s`` seconds."""
        asked = Asked()

        async def answer(line: str) -> bytes:
            with asked.noted(line):
                await asyncio.sleep(thinks_s)
            return b"s" + QUESTION.encode()

        rules = task_named(task)
        spec = MachineSpec(
            image=self.image(task),
            run_id=RUN,
            trial=1,
            limits=limits or Limits(),
            watched=tuple(path for path, _ in rules.protected(mechanism_for(task, None))),
            programs=tuple(path for path, _, _ in rules.programs),
            **rules.agent.model_dump(),
        )
        starting = DockerBackend(self.engine.client).start(spec, answer)
        box = self.runner.run(self.stack.enter_async_context(starting))
        if look == "archive":
            box.reader, box.events = ArchiveReader(box.container), None
        elif look == "layers" and not isinstance(box.reader, OverlayReader):
            pytest.skip("the layers of this engine's containers can't be read from here")
        return Box(box, self.runner, asked)


@pytest.fixture
def boxes(engine: Engine, image: Callable[[str], str]) -> Iterator[Boxes]:
    """Yield a factory of sandboxes, and remove them afterwards."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        started = Boxes(engine, image, runner)
        yield started
        runner.run(started.stack.aclose())


@pytest.fixture
def box(boxes: Boxes) -> Box:
    """Start a sandbox of the math task."""
    return boxes()


# ---- the command line ----


class Cli(Protocol):
    """A function that runs ``python -m harness`` and waits for its end."""

    def __call__(
        self, *args: str | Path, env: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a temporary folder, with ``env`` added to the environment."""


@pytest.fixture(scope="session")
def owners() -> list[str]:
    """Return the identities of the processes whose containers must be gone after each test.

    A pid alone isn't enough: pids wrap around, and another worker's harness may get one that this worker's had.
    """
    return [this_process()]


@pytest.fixture(scope="session")
def harness_cli(owners: list[str], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Return a function that runs the command line and waits for its end."""
    folder = tmp_path_factory.mktemp("cli")

    def run(
        *args: str | Path, env: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        with _harness(folder, owners, *args, env=env) as process:
            out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def harness_started(owners: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Yield a function that starts the command line in its own process group and leaves it running."""
    with ExitStack() as stack:
        yield lambda *args, env=None: stack.enter_context(_harness(tmp_path, owners, *args, env=env))


@contextmanager
def _harness(
    folder: Path, owners: list[str], *args: str | Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a harness process, and kill its process group after the block."""
    command = [sys.executable, "-m", "harness", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment.pop("OFFSWITCH_RUNS_DIR", None)
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        owners.append(identity_of(process.pid))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))  # protects the machine's memory
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# ---- the check after each test ----


@pytest.fixture(autouse=True)
def no_container_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a docker test that leaves a container of this process or of a harness it started."""
    if not request.node.get_closest_marker("docker"):
        yield
        return
    client: DockerClient = request.getfixturevalue("client")
    owners: list[str] = request.getfixturevalue("owners")
    yield
    left = _owned(client, lambda owner: owner in owners)
    for container in left:  # removed, so that the next test doesn't fail too
        client.api.remove_container(container, force=True)
    assert not left


def containers_of(client: DockerClient, pid: int) -> list[str]:
    """Return the ids of the containers that a process of this host owns."""
    return _owned(client, lambda owner: owner.startswith(f"{socket.gethostname()}:{pid}:"))


def _owned(client: DockerClient, wanted: Callable[[str], bool]) -> list[str]:
    """Return the ids of the containers whose owner label is wanted."""
    found = client.api.containers(all=True, filters={"label": LABEL})
    return [each["Id"] for each in found if wanted(each["Labels"][LABEL])]
