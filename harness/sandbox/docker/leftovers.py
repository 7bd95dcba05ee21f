"""Removes leftover containers and networks from a Docker engine, and optionally the images that the lab built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import docker
import docker.errors
from docker.models.images import Image
from docker.models.networks import Network

from harness.errors import EngineError
from harness.process.identity import is_gone
from harness.sandbox.docker.images.base_image import BASE
from harness.sandbox.docker.labels import LABEL, remove_leftovers

BUILT_BY_LAB = {"label": "offswitch=sandbox"}


def clear_engine(client: docker.DockerClient, *, images: bool) -> Iterator[str]:
    """Remove all containers and networks of lab processes that have ended, and yield messages about what was removed.

    If ``images`` is True, also remove the lab's sandbox images that no container uses. There is at most one message for
    the containers, one for the networks and one for the images. Raises EngineError if the engine refuses a request.
    """
    try:
        if containers := remove_leftovers(client):
            yield f"{containers} containers of processes that are gone"
        if networks := sum(_remove_network(each) for each in _orphans(client)):
            yield f"{networks} networks of processes that are gone"
        if images and (removed := [tag for each in _built(client) for tag in _remove_image(client, each)]):
            yield f"{len(removed)} images that no container uses: {', '.join(removed)}"
    except docker.errors.APIError as error:
        raise EngineError(f"The Docker engine refused: {error.explanation or error}.") from error


def _orphans(client: docker.DockerClient) -> Iterator[Network]:
    for network in client.networks.list(filters={"label": LABEL}):
        if is_gone(network.attrs["Labels"][LABEL]):
            yield network


def _remove_network(network: Network) -> bool:
    with suppress(docker.errors.NotFound):  # another process removed it
        network.remove()
        return True
    return False


def _built(client: docker.DockerClient) -> list[Image]:
    """List the sandbox images that the lab built, including untagged ones and excluding the base image."""
    return [each for each in client.images.list(filters=BUILT_BY_LAB) if BASE not in each.tags]


def _remove_image(client: docker.DockerClient, image: Image) -> list[str]:
    """Remove an image and return its names.

    If a container uses the image, remove nothing and return an empty list.
    """
    names = image.tags or [str(image.short_id)]
    users = client.containers.list(all=True, filters={"ancestor": str(image.id)}, ignore_removed=True)
    if users:
        return []
    for name in names:
        with suppress(docker.errors.ImageNotFound):
            client.images.remove(name)
    return names
