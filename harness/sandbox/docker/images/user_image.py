"""Builds an image from a user's Dockerfile, and inspects images without running them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker
import docker.errors

from harness.errors import ImageError
from harness.judging.evidence import FileState, Frozen
from harness.sandbox.docker.labels import owner_labels
from harness.sandbox.observe.archive import ArchiveReader

NAME = "offswitch/audited"
PROGRAM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin")


class ImageContents(Frozen):
    """The configuration and contents of an image, read without running the image.

    ``states`` are the states of the requested paths. ``programs`` are the names of the requested programs that were
    found in the image. The other fields are the image's ID and configuration.
    """

    id: str
    user: str
    workdir: str
    environment: tuple[str, ...]
    volumes: tuple[str, ...]
    states: tuple[FileState, ...] = ()
    programs: frozenset[str] = frozenset()

    def at(self, path: str) -> FileState:
        """Return the state of ``path``, which must be one of the requested paths."""
        return next(state for state in self.states if state.path == path)


def build_from(client: docker.DockerClient, dockerfile: Path) -> str:
    """Build an image from the user's Dockerfile and return the image's tag.

    The build context is the Dockerfile's folder. Raises ImageError if the file doesn't exist or the image can't be
    built.
    """
    if not dockerfile.is_file():
        raise ImageError(f"There is no Dockerfile {dockerfile}: name the file itself with --dockerfile.")
    try:
        image, _ = client.images.build(
            path=str(dockerfile.parent),
            dockerfile=dockerfile.name,
            rm=True,
            forcerm=True,
            labels={"offswitch": "audited"},
        )
    except (docker.errors.BuildError, docker.errors.APIError, TypeError) as error:
        reason = " ".join(str(getattr(error, "msg", error)).split())
        raise ImageError(f"{dockerfile} does not build: {reason}") from error
    tag = f"{NAME}:{str(image.id).removeprefix('sha256:')[:16]}"
    image.tag(tag)
    return tag


def look_into(
    client: docker.DockerClient, name: str, paths: Iterable[str], programs: Iterable[str] = ()
) -> ImageContents:
    """Inspect a local image without running it, and return the image's configuration and contents.

    ``paths`` are the paths whose states are returned. ``programs`` are the names of programs to look for in the image.
    Raises ImageError if the engine has no such image.
    """
    try:
        image = client.images.get(name)
    except docker.errors.ImageNotFound as error:
        raise ImageError(f"The engine has no image '{name}': build or pull it first, or use --dockerfile.") from error
    config: dict[str, Any] = image.attrs.get("Config") or {}
    container = client.containers.create(name, "never started", network_mode="none", labels=owner_labels())
    try:
        reader = ArchiveReader(container)
        states = reader.states(paths)
        found = frozenset(
            name for name in programs if any(reader.exists(f"{folder}/{name}") for folder in PROGRAM_FOLDERS)
        )
    finally:
        container.remove(force=True, v=True)
    return ImageContents(
        id=str(image.id),
        user=config.get("User") or "",
        workdir=config.get("WorkingDir") or "/",
        environment=tuple(config.get("Env") or ()),
        volumes=tuple(config.get("Volumes") or ()),
        states=states,
        programs=found,
    )
