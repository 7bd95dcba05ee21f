"""Whose a container is, and the removal of those whose owner is gone."""

from __future__ import annotations

import docker
import docker.errors
from docker.models.containers import Container

from harness.process.identity import is_gone, this_process

LABEL = "offswitch.owner"
CONFLICT = 409


def owner_labels() -> dict[str, str]:
    """Labels that name this process, for whatever it has the engine make."""
    return {LABEL: this_process()}


def remove_own(client: docker.DockerClient, run_id: str) -> None:
    """Remove the containers that this process made for a run."""
    mine = [f"{LABEL}={this_process()}", f"offswitch.run={run_id}"]
    for container in client.containers.list(all=True, filters={"label": mine}, ignore_removed=True):
        _removed(container)


def remove_leftovers(client: docker.DockerClient) -> int:
    """Remove the containers of harness processes of this host that no longer live; how many there were."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if is_gone(container.labels[LABEL]):
            removed += _removed(container)
    return removed


def _removed(container: Container) -> bool:
    """Remove a container; False where another start is about it already, or was faster."""
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return False
    except docker.errors.APIError as error:
        if error.status_code != CONFLICT:
            raise
        return False
    return True
