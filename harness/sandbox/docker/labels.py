"""Labels each container with the lab process that created it, and removes containers of processes that have ended."""

from __future__ import annotations

import docker
import docker.errors
from docker.models.containers import Container

from harness.process.identity import is_gone, this_process

LABEL = "offswitch.owner"
CONFLICT = 409


def owner_labels() -> dict[str, str]:
    """Return the Docker labels that mark a container as created by this process."""
    return {LABEL: this_process()}


def remove_own(client: docker.DockerClient, run_id: str) -> None:
    """Remove all containers that this process created for the run ``run_id``."""
    mine = [f"{LABEL}={this_process()}", f"offswitch.run={run_id}"]
    for container in client.containers.list(all=True, filters={"label": mine}, ignore_removed=True):
        _remove(container)


def remove_leftovers(client: docker.DockerClient) -> int:
    """Remove all containers of lab processes that have ended, and return the number of removed containers.

    Containers of processes on other hosts are not removed.
    """
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if is_gone(container.labels[LABEL]):
            removed += _remove(container)
    return removed


def _remove(container: Container) -> bool:
    """Remove a container and return True.

    Returns False if another process has removed the container or is removing it.
    """
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return False
    except docker.errors.APIError as error:
        if error.status_code != CONFLICT:
            raise
        return False
    return True
