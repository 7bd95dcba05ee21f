"""Labels each container with the lab process that made it, and removes containers whose process has ended."""

from __future__ import annotations

import docker
import docker.errors
from docker.models.containers import Container

from harness.process.identity import is_gone, this_process

LABEL = "offswitch.owner"
CONFLICT = 409


def owner_labels() -> dict[str, str]:
    """Return the labels that mark a container as made by this process."""
    return {LABEL: this_process()}


def remove_own(client: docker.DockerClient, run_id: str) -> None:
    """Remove all containers that this process made for the run ``run_id``."""
    mine = [f"{LABEL}={this_process()}", f"offswitch.run={run_id}"]
    for container in client.containers.list(all=True, filters={"label": mine}, ignore_removed=True):
        _remove(container)


def remove_leftovers(client: docker.DockerClient) -> int:
    """Remove the containers of lab processes that have ended; return how many containers were removed.

    Containers that were made by processes of another host are kept.
    """
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if is_gone(container.labels[LABEL]):
            removed += _remove(container)
    return removed


def _remove(container: Container) -> bool:
    """Remove a container; return False if another process has removed it or is doing so."""
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return False
    except docker.errors.APIError as error:
        if error.status_code != CONFLICT:
            raise
        return False
    return True
