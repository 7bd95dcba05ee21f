"""What killed processes leave is cleared; what living processes or other programs own stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker import DockerClient  # noqa: TID251 - what an engine is reached through

from harness.process.identity import is_elsewhere, is_gone, left_folders, temporary_prefix, this_process
from harness.sandbox.docker.images.base_image import BASE
from harness.sandbox.docker.labels import LABEL, owner_labels
from harness.sandbox.docker.leftovers import clear_engine
from harness.sandbox.docker.setup.local_engine import rotate
from harness.store.store import Store
from tests.conftest import Cli

GONE = f"{socket.gethostname()}:{os.getpid()}:0"


def test_a_process_is_known_by_its_birth() -> None:
    """A process is identified by host, pid and start time; another start time means that it is gone."""
    assert not is_gone(this_process())
    assert is_gone(GONE)
    assert not is_gone("another-host:1:0")
    assert is_elsewhere("another-host:1:0")
    assert not is_elsewhere(GONE)


def test_a_killed_process_that_nobody_asked_about_is_gone() -> None:
    """A zombie process, which has died but was not waited for, counts as gone."""
    told = "from harness.process.identity import this_process; print(this_process(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", told], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        owner = process.stdout.readline().decode().strip()
        assert not is_gone(owner)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has died, and stays listed
        assert is_gone(owner)


def test_only_dead_processes_folders_are_left(tmp_path: Path) -> None:
    """Temporary folders of dead lab processes are found; those of living ones and of other programs aren't."""
    mine = tempfile.mkdtemp(prefix=temporary_prefix(), dir=tmp_path)
    left = [tmp_path / name for name in (f"offswitch-{os.getpid()}-0-abc", f"offswitch-agent-{os.getpid()}-0-x_1")]
    for folder in (*left, tmp_path / "offswitch-notes-of-mine", tmp_path / "other-1-0-abc"):
        folder.mkdir()
    (tmp_path / f"offswitch-{os.getpid()}-0-link").symlink_to(mine)
    (tmp_path / f"offswitch-{os.getpid()}-0-file").touch()
    assert left_folders(tmp_path) == sorted(left)


def test_a_log_is_put_aside_when_it_has_grown(tmp_path: Path) -> None:
    """A log over its limit is copied and truncated while its writer goes on; a shorter one is left alone."""
    log = tmp_path / "dockerd.log"
    with log.open("a") as writer:
        writer.write("first " * 20)
        writer.flush()
        rotate(log, 1000)
        assert not (tmp_path / "dockerd.log.1").exists()
        rotate(log, 100)
        writer.write("second")
        writer.flush()
    assert log.read_text() == "second"
    assert (tmp_path / "dockerd.log.1").read_text() == "first " * 20
    rotate(tmp_path / "none", 1)


class FakeImage:
    """A fake image with these tags."""

    def __init__(self, name: str, *tags: str) -> None:
        self.id = self.short_id = name
        self.tags = list(tags)


def fake_engine(images: list[FakeImage], used: set[str]) -> tuple[Any, list[str]]:
    """Make a fake engine with these images, some in use; return it and the list of removed names."""
    removed: list[str] = []

    def containers(filters: dict[str, str], **_: Any) -> list[str]:
        return ["one"] if filters.get("ancestor") in used else []

    client = SimpleNamespace(
        containers=SimpleNamespace(list=containers),
        networks=SimpleNamespace(list=lambda filters: []),
        images=SimpleNamespace(list=lambda filters: images, remove=removed.append),
    )
    return client, removed


def test_images_go_only_where_asked_and_unused() -> None:
    """Images are removed only with ``images``, only where no container uses them, and never the base image."""
    images = [FakeImage("a", "offswitch/sandbox:a"), FakeImage("b", "offswitch/sandbox:b"), FakeImage("c")]
    client, removed = fake_engine([*images, FakeImage("d", BASE)], used={"b"})
    assert list(clear_engine(client, images=False)) == []
    assert removed == []
    said = list(clear_engine(client, images=True))
    assert removed == ["offswitch/sandbox:a", "c"]
    assert said == ["2 images that no container uses: offswitch/sandbox:a, c"]


@pytest.mark.docker
def test_clean_clears_what_the_dead_left(
    harness_cli: Cli, client: DockerClient, image: Callable[[str], str], tmp_path: Path
) -> None:
    """Clean removes and lists dead processes' containers, folders and claims; a second one finds no claims."""
    left = client.containers.create(image("math"), "true", labels={LABEL: GONE})
    mine = client.containers.create(image("math"), "true", labels=owner_labels())
    folder = tmp_path / f"offswitch-{os.getpid()}-0-abc"
    folder.mkdir()
    with Store(tmp_path) as store:
        store.claim("a-run", 1, GONE)
        store.claim("a-run", 2, this_process())
    where = ("--runs-dir", tmp_path)
    try:
        done = harness_cli("clean", *where, env={"TMPDIR": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert str(folder) in done.stdout
        assert "1 claims of trials" in done.stdout
        assert not folder.exists()
        assert left.id not in [each.id for each in client.containers.list(all=True)]
        mine.reload()
        again = harness_cli("clean", *where, env={"TMPDIR": str(tmp_path)})
        assert "claims" not in again.stdout
    finally:
        mine.remove(force=True)


def test_clean_works_without_an_engine(harness_cli: Cli, tmp_path: Path) -> None:
    """Where no engine answers, clean says so and still clears everything else."""
    with Store(tmp_path) as store:
        store.claim("a-run", 1, GONE)
    dead = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "TMPDIR": str(tmp_path)}
    done = harness_cli("clean", "--runs-dir", tmp_path, env=dead)
    assert done.returncode == 0
    assert done.stdout == "Removed 1 claims of trials that were never finished.\n"
    assert "No engine was looked at." in done.stderr
    assert harness_cli("clean", "--runs-dir", tmp_path, env=dead).stdout == "There was nothing to clear.\n"
