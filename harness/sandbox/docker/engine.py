"""An engine at work: what a run needs of it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from harness.errors import EngineError
from harness.sandbox.docker.connect import connect
from harness.sandbox.docker.container import DockerBackend, call, container_options, refuse_unknown_observer
from harness.sandbox.docker.images.base_image import ensure_base
from harness.sandbox.docker.images.build import Image, derived_image, prepared
from harness.sandbox.docker.images.user_image import ImageContents, build_from, look_into
from harness.sandbox.docker.labels import remove_leftovers, remove_own
from harness.sandbox.docker.restarts import RestartCounter
from harness.sandbox.protocol import Backend, MachineSpec
from harness.sandbox.versions import Versions
from harness.store.records import RunSpec
from harness.tasks.registry import task_for


@dataclass(frozen=True)
class Engine:
    """A connection to one engine. ``say`` is told, in a line each, what takes time."""

    client: docker.DockerClient
    say: Callable[[str], None]
    restarts: RestartCounter | None = None

    @classmethod
    @contextmanager
    def connected(cls, say: Callable[[str], None]) -> Iterator[Engine]:
        """The engine that answers. Raises EngineError in one sentence where none does."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # hundreds of trials alive have thousands of files
        client = connect()
        restarts = RestartCounter(client)
        try:
            with restarts.counted():
                yield cls(client, say, restarts)
        finally:
            client.close()

    @property
    def backend(self) -> Backend:
        """Where this engine's sandboxes come from. Raises UsageError where the environment asks for an unknown look."""
        refuse_unknown_observer()
        return DockerBackend(self.client)

    async def prepare(self, run: RunSpec) -> tuple[Image, Versions]:
        """Clear what killed runs left behind, and make sure of the run's image. Raises EngineError."""
        return await call(self._prepare, run, self._shipped_image)

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

    async def prepare_own(self, run: RunSpec) -> tuple[Image, Versions]:
        """The same for a run in an image of the user's own, which it names. Raises EngineError."""
        return await call(self._prepare, run, self._derived_image)

    async def build_own(self, dockerfile: Path) -> str:
        """Build the user's Dockerfile; the image's tag. Raises ImageError."""
        return await call(self._build_own, dockerfile)

    async def look_into(self, image: str, paths: Iterable[str], programs: Iterable[str] = ()) -> ImageContents:
        """What a local image says of itself, and what of these paths and programs is in it. Raises ImageError."""
        return await call(look_into, self.client, image, tuple(paths), tuple(programs))

    async def inspect_machine(self, spec: MachineSpec) -> dict[str, Any]:
        """What the engine says about a trial's container; one is created for it and never started."""
        return await call(self._inspect_machine, spec)

    def _build_own(self, dockerfile: Path) -> str:
        ensure_base(self.client, self.say)  # what an example of ours starts from
        return build_from(self.client, dockerfile)

    def _inspect_machine(self, spec: MachineSpec) -> dict[str, Any]:
        api, body = self.client.api, container_options(spec)
        container = api.create_container_from_config(body)["Id"]  # type: ignore[no-untyped-call] # the SDK's own
        try:
            return dict(api.inspect_container(container))
        finally:
            api.remove_container(container, force=True, v=True)

    def _shipped_image(self, run: RunSpec) -> Image:
        task = task_for(run.task, run.agent)
        return prepared(self.client, run.image, task, run.mechanism, lambda: ensure_base(self.client, self.say))

    def _derived_image(self, run: RunSpec) -> Image:
        return derived_image(self.client, run.image, task_for(run.task, run.agent))

    def _prepare(self, run: RunSpec, image_for: Callable[[RunSpec], Image]) -> tuple[Image, Versions]:
        if leftovers := remove_leftovers(self.client):
            self.say(f"Removed {leftovers} containers that a killed run left behind.")
        image = image_for(run)
        facts = self.client.version()
        runtime = self.client.info()["DefaultRuntime"]
        return image, Versions(engine=facts["Version"], runtime=runtime, kernel=facts.get("KernelVersion", ""))
