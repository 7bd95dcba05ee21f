"""Reads of /proc: complete however long the file is, and bounded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from harness.sandbox.docker.limits.disk_quota import processes_of
from harness.sandbox.observe.procfs import READ_BYTES, text_of


@pytest.fixture
def many() -> Iterator[list[int]]:
    """Start more child processes than the kernel lists in one page."""
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(900)]
    yield [each.pid for each in sleepers]
    for each in sleepers:
        each.kill()
    for each in sleepers:
        each.wait()


def test_a_list_that_the_kernel_gives_in_pieces_is_read_to_its_end(many: list[int]) -> None:
    """All of 900 child processes are found, although the kernel lists them in several reads."""
    assert set(many) < set(processes_of(os.getpid()))


def test_a_large_environment_is_read_whole() -> None:
    """An environment of a hundred kilobytes is read to its last variable."""
    crowd = {f"V{number:03}": "x" * 1000 for number in range(100)}
    with subprocess.Popen(["sleep", "60"], env={**crowd, "LAST": "seen"}) as sleeper:
        while "LAST=seen" not in (text := text_of(f"/proc/{sleeper.pid}/environ")):  # until it is sleep that runs
            assert sleeper.poll() is None
        sleeper.kill()
    assert text.count("x" * 1000) == 100


def test_what_is_read_is_bounded() -> None:
    """A read of an endless file stops at about READ_BYTES."""
    assert READ_BYTES <= len(text_of("/dev/zero")) < READ_BYTES + (1 << 20)


def test_a_process_that_is_gone_is_an_error() -> None:
    """Reading a file of a process that doesn't exist raises OSError."""
    with pytest.raises(OSError, match="No such file"):
        text_of("/proc/0/status")
