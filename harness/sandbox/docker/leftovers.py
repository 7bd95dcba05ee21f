"""What dead harness processes left on an engine, and the images that the lab can build again."""

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

BUILT = {"label": "offswitch=sandbox"}


def clear_engine(client: docker.DockerClient, *, images: bool) -> Iterator[str]:
    """Remove what has no owner any more; says what, in a line each. Raises EngineError.

    ``images``: those that the lab built and no container uses, too. What is needed again is built again.
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
    with suppress(docker.errors.NotFound):  # another clean was faster
        network.remove()
        return True
    return False


def _built(client: docker.DockerClient) -> list[Image]:
    """The lab's own sandbox images, those that lost their tag included; never the base they start from."""
    return [each for each in client.images.list(filters=BUILT) if BASE not in each.tags]


def _remove_image(client: docker.DockerClient, image: Image) -> list[str]:
    """Remove an image by its names, unless a container uses it; the names that went."""
    names = image.tags or [str(image.short_id)]
    users = client.containers.list(all=True, filters={"ancestor": str(image.id)}, ignore_removed=True)
    if users:
        return []
    for name in names:
        with suppress(docker.errors.ImageNotFound):
            client.images.remove(name)
    return names
