"""Whose a container is, and the removal of those whose owner is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import docker
import docker.errors
from docker.models.containers import Container

LABEL = "offswitch.owner"
CONFLICT = 409


def _birth(pid: int) -> str | None:
    """When a process was started, in ticks since boot, or None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def owner_labels() -> dict[str, str]:
    """Labels that name this process: host, pid and birth, so that a pid used again is not taken for it."""
    return {LABEL: f"{socket.gethostname()}:{os.getpid()}:{_birth(os.getpid())}"}


def _is_gone(owner: str) -> bool:
    host, pid, birth = owner.rsplit(":", 2)
    return host == socket.gethostname() and _birth(int(pid)) != birth


def remove_leftovers(client: docker.DockerClient) -> int:
    """Remove the containers of harness processes of this host that no longer live; how many there were."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if _is_gone(container.labels[LABEL]):
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
