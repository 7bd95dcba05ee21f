"""An engine at work: what a run needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import docker
import docker.errors

from harness.engine.base import ensure_base
from harness.engine.connect import connect
from harness.engine.images import Image, prepared
from harness.engine.lives import Lives
from harness.engine.owner import remove_leftovers, remove_own
from harness.engine.sandbox import DockerSandboxes, call
from harness.errors import EngineError
from harness.record import RunSpec, Versions
from harness.registry import task_named
from harness.sandbox import Sandboxes


@dataclass(frozen=True)
class Engine:
    """A connection to one engine. ``say`` is told, in a line each, what takes time."""

    client: docker.DockerClient
    say: Callable[[str], None]
    lives: Lives | None = None

    @classmethod
    @contextmanager
    def connected(cls, say: Callable[[str], None]) -> Iterator[Engine]:
        """The engine that answers. Raises EngineError in one sentence where none does."""
        client = connect()
        lives = Lives(client)
        try:
            with lives.counted():
                yield cls(client, say, lives)
        finally:
            client.close()

    @property
    def sandboxes(self) -> Sandboxes:
        """Where this engine's sandboxes come from."""
        return DockerSandboxes(self.client)

    async def prepare(self, run: RunSpec) -> tuple[Image, Versions]:
        """Clear what killed runs left behind, and make sure of the run's image. Raises EngineError."""
        return await call(self._prepare, run)

    async def has_image(self, tag: str) -> bool:
        """Whether the engine has an image of that tag. Raises EngineError where it doesn't answer."""
        return await call(self._has_image, tag)

    async def answers(self) -> bool:
        """Whether the engine answers now."""
        with suppress(EngineError):
            return await call(self.client.ping)
        return False

    async def clear(self, run_id: str) -> None:
        """Remove what is left of this process's machines of a run that has ended: the engine may have been away."""
        with suppress(EngineError):  # a leftover is found by its label at the next start
            await call(remove_own, self.client, run_id)

    def _has_image(self, tag: str) -> bool:
        try:
            self.client.images.get(tag)
        except docker.errors.ImageNotFound:
            return False
        return True

    def _prepare(self, run: RunSpec) -> tuple[Image, Versions]:
        if leftovers := remove_leftovers(self.client):
            self.say(f"Removed {leftovers} containers that a killed run left behind.")
        task = task_named(run.task)
        image = prepared(self.client, run.image, task, run.mechanism, lambda: ensure_base(self.client, self.say))
        facts = self.client.version()
        return image, Versions(engine=facts["Version"], kernel=facts.get("KernelVersion", ""))
