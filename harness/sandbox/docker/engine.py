"""Gives runs and image audits access to a Docker engine, for example to build images and remove containers."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
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
from harness.sandbox.protocol import ImageRequest, MachineSpec
from harness.sandbox.versions import Versions


@dataclass(frozen=True)
class Engine:
    """A connection to one Docker engine.

    ``say`` is a function that shows a line of progress to the user. ``restarts`` counts the engine's restarts, or is
    None if restarts aren't counted.
    """

    client: docker.DockerClient
    say: Callable[[str], None]
    restarts: RestartCounter | None = None

    @classmethod
    @contextmanager
    def connected(cls, say: Callable[[str], None]) -> Iterator[Engine]:
        """Connect to the first Docker engine that answers, and disconnect when the ``with`` block ends.

        Raises EngineError if no engine answers. Raises UsageError if the environment variable OFFSWITCH_LOOK has an
        unknown value.
        """
        refuse_unknown_observer()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # hundreds of trials keep thousands of files open
        client = connect()
        restarts = RestartCounter(client)
        try:
            with restarts.counted():
                yield cls(client, say, restarts)
        finally:
            client.close()

    @cached_property
    def backend(self) -> DockerBackend:
        """The back end that starts containers on this engine. It is created on first use and then reused."""
        return DockerBackend(self.client)

    async def prepare(self, request: ImageRequest) -> tuple[Image, Versions]:
        """Build the requested image if it doesn't exist, and return the image and the software versions.

        The versions are those of the engine, the container runtime and the kernel. Containers left over from killed
        runs are removed first. Raises EngineError if the engine fails, and ImageError if the image can't be built.
        """
        return await call(self._prepare, request)

    def _prepare(self, request: ImageRequest) -> tuple[Image, Versions]:
        if leftovers := remove_leftovers(self.client):
            self.say(f"Removed {leftovers} containers that a killed run left behind.")
        image = self._image(request)
        facts = self.client.version()
        runtime = self.client.info()["DefaultRuntime"]
        return image, Versions(engine=facts["Version"], runtime=runtime, kernel=facts.get("KernelVersion", ""))

    def _image(self, request: ImageRequest) -> Image:
        if request.of_user:
            return derived_image(self.client, request.name, request.task)
        base = lambda: ensure_base(self.client, self.say)  # noqa: E731 - called only where the image is missing
        return prepared(self.client, request.name, request.task, request.mechanism, base)

    async def has_image(self, tag: str) -> bool:
        """Return whether the engine has an image with the tag ``tag``.

        Raises EngineError if the engine doesn't answer.
        """
        return await call(self._has_image, tag)

    def _has_image(self, tag: str) -> bool:
        try:
            self.client.images.get(tag)
        except docker.errors.ImageNotFound:
            return False
        return True

    async def answers(self) -> bool:
        """Return whether the Docker engine answers now."""
        with suppress(EngineError):
            return await call(self.client.ping)
        return False

    async def clear(self, run_id: str) -> None:
        """Remove the containers that this process created for the finished run ``run_id``.

        If the engine doesn't answer, the containers remain until the next run removes them.
        """
        with suppress(EngineError):  # the next run finds leftovers by their label
            await call(remove_own, self.client, run_id)

    # ---- for audits ----

    async def build_own(self, dockerfile: Path) -> str:
        """Build an image from the user's Dockerfile and return the image's tag.

        Raises ImageError if the image can't be built.
        """
        return await call(self._build_own, dockerfile)

    def _build_own(self, dockerfile: Path) -> str:
        ensure_base(self.client, self.say)  # the shipped example starts from it
        return build_from(self.client, dockerfile)

    async def look_into(self, image: str, paths: Iterable[str], programs: Iterable[str] = ()) -> ImageContents:
        """Inspect a local image without running it, and return the image's configuration and contents.

        ``paths`` are the paths whose states are returned. ``programs`` are the names of programs to look for in the
        image. Raises ImageError if the engine has no such image.
        """
        return await call(look_into, self.client, image, tuple(paths), tuple(programs))

    async def inspect_machine(self, spec: MachineSpec) -> dict[str, Any]:
        """Create a container for ``spec``, inspect and remove it, and return the result of ``docker inspect``.

        The container is never started.
        """
        return await call(self._inspect_machine, spec)

    def _inspect_machine(self, spec: MachineSpec) -> dict[str, Any]:
        api, body = self.client.api, container_options(spec)
        container = api.create_container_from_config(body)["Id"]  # type: ignore[no-untyped-call] # the SDK's own
        try:
            return dict(api.inspect_container(container))
        finally:
            api.remove_container(container, force=True, v=True)
