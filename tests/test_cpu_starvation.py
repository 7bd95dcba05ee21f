"""CPU starvation: whether a container was short of CPU because of the host."""

from __future__ import annotations

import os
import time

import pytest

from harness.sandbox.docker.limits import cpu_starvation as starvation
from harness.sandbox.docker.limits.cpu_starvation import CpuStarvation


@pytest.mark.parametrize(
    ("used", "states", "is_starved"),
    [
        pytest.param(0.0, "SR", True, id="would run and got nothing"),
        pytest.param(0.0, "SD", True, id="waits for the disk"),
        pytest.param(0.0, "ST", False, id="sleeps, or was stopped"),
        pytest.param(10.0, "RR", False, id="runs and had its share"),
        pytest.param(0.0, "", False, id="nothing there"),
        pytest.param(None, "R", False, id="not known"),
    ],
)
def test_a_machine_is_starved_when_it_wants_more_than_it_got(
    monkeypatch: pytest.MonkeyPatch, used: float | None, states: str, is_starved: bool
) -> None:
    """A container is starved where it got less than its limit and a process in it wants to run, and only then."""
    spent = iter([0.0, used])
    monkeypatch.setattr(starvation, "_used_s", lambda counter: next(spent))
    monkeypatch.setattr(starvation, "_processes", lambda counter: list(map(str, range(len(states)))))
    monkeypatch.setattr(starvation, "_state", lambda pid: states[int(pid)])
    assert CpuStarvation(first=1, cpus=0.5).is_starved() is is_starved


def test_a_process_that_is_gone_has_a_state_too() -> None:
    """The state of a process that has ended is X, which wants no CPU."""
    assert starvation._state(str(os.getpid())) in "RS"
    assert starvation._state(str(2**30)) == "X"


def test_the_processes_are_the_groups_own() -> None:
    """The processes of a control group include this one; without a control group there are none."""
    counter = starvation._counter_of(os.getpid())
    if counter is None:
        pytest.skip("this host has no control groups that count processor time")
    assert str(os.getpid()) in starvation._processes(counter)
    assert starvation._processes(None) == []


def test_used_time_is_the_groups_own() -> None:
    """The CPU time read from a control group grows by the time that this process works."""
    counter = starvation._counter_of(os.getpid())
    before = starvation._used_s(counter)
    if before is None:
        pytest.skip("this host has no control groups that count processor time")
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = starvation._used_s(counter)
    assert after is not None
    assert after - before >= 0.04
