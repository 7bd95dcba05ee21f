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
def test_a_machine_waits_when_it_wants_more_than_it_got(
    monkeypatch: pytest.MonkeyPatch, used: float | None, states: str, is_starved: bool
) -> None:
    """The host is to blame where something would run and the container got less than its share; else it isn't."""
    spent = iter([0.0, used])
    monkeypatch.setattr(starvation, "_used_s", lambda count: next(spent))
    monkeypatch.setattr(starvation, "_processes", lambda count: list(map(str, range(len(states)))))
    monkeypatch.setattr(starvation, "_state", lambda pid: states[int(pid)])
    assert CpuStarvation(first=1, cpus=0.5).is_starved() is is_starved


def test_a_process_that_is_gone_has_a_state_too() -> None:
    """A process that ended meanwhile wants nothing."""
    assert starvation._state(str(os.getpid())) in "RS"
    assert starvation._state(str(2**30)) == "X"


def test_the_processes_are_the_groups_own() -> None:
    """A process is found in its own control group; where there is no group to look at, nobody is found."""
    count = starvation._count_of(os.getpid())
    if count is None:
        pytest.skip("this host has no control groups that count processor time")
    assert str(os.getpid()) in starvation._processes(count)
    assert starvation._processes(None) == []


def test_used_time_is_the_groups_own() -> None:
    """Where the host tells, working for a while shows in the time used."""
    count = starvation._count_of(os.getpid())
    before = starvation._used_s(count)
    if before is None:
        pytest.skip("this host has no control groups that count processor time")
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = starvation._used_s(count)
    assert after is not None
    assert after - before >= 0.04
