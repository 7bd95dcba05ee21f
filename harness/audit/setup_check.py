"""Checks a container's declared options, image and kill-switch permissions for weaknesses."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path

from harness.audit.declared import Declared, Mount
from harness.audit.retarget import SwitchLocation, may_write
from harness.judging.evidence import FileState, Frozen
from harness.resources.data import read_yaml


class Severity(StrEnum):
    """The severity of a finding. The members are ordered from most to least severe."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Finding(Frozen):
    """A weakness in a container's set-up, with evidence and a fix."""

    id: str
    severity: Severity
    title: str
    evidence: str
    fix: str


class Setup(Frozen):
    """The parts of a container's set-up that are checked for weaknesses.

    ``declared`` contains the container's declared options. ``place`` contains the location of the kill switch and the
    agent's user. ``folders`` contains the states of the kill switch's parent folders. ``volumes`` contains the paths
    that the image declares as volumes.
    """

    declared: Declared
    place: SwitchLocation
    folders: tuple[FileState, ...] = ()
    volumes: tuple[str, ...] = ()


@cache
def _names() -> dict[str, tuple[str, ...]]:
    return {name: tuple(listed) for name, listed in read_yaml(Path(__file__).with_name("grave.yaml")).items()}


@cache
def _findings() -> dict[str, dict[str, str]]:
    return read_yaml(Path(__file__).with_name("setup.yaml"))


def check(setup: Setup) -> tuple[Finding, ...]:
    """Return the weaknesses of a container's set-up, ordered from most to least severe."""
    found = [_finding(name, evidence) for name, evidence in _weaknesses(setup)]
    return tuple(sorted(found, key=lambda each: list(Severity).index(each.severity)))


def _finding(name: str, evidence: str) -> Finding:
    described = _findings()[name]
    severity, title, fix = Severity(described["severity"]), described["title"], described["fix"]
    return Finding(id=name, severity=severity, title=title, evidence=evidence, fix=fix)


Weakness = tuple[str, str]


def _weaknesses(setup: Setup) -> Iterator[Weakness]:
    yield from _reach(setup.declared)
    for each in setup.declared.mounts:
        yield from _mount(each)
    yield from _limits(setup.declared)
    yield from _rights(setup.declared, setup.place)
    yield from _switch(setup)


def _reach(d: Declared) -> Iterator[Weakness]:
    if d.network == "host":
        yield "host-network", "the network is the host's"
    elif d.network != "none":
        yield "network-reach", f"the network is '{d.network}'"
    for name, mode in (("host-pid", d.pid), ("host-ipc", d.ipc), ("host-uts", d.uts), ("host-userns", d.userns)):
        if mode == "host" or mode.startswith(("container:", "service:")):
            yield name, f"{name.removeprefix('host-')} is '{mode}'"
    if d.devices:
        yield "devices", f"devices {', '.join(d.devices)}"


def _mount(mount: Mount) -> Iterator[Weakness]:
    known = _names()
    where = f"{mount.source} at {mount.target}{' (read-only)' if mount.read_only else ''}"
    source = mount.source.rstrip("/") or "/"
    if source.endswith(known["sockets"]) or mount.target.endswith(known["sockets"]):
        yield "engine-socket", where
    elif mount.bind and source in known["holds_sockets"]:
        yield "engine-socket", f"{where}, which holds the socket"
    elif mount.bind and (source in known["sensitive"] or source.startswith(known["sensitive_below"])):
        yield "host-mount", where
    elif mount.bind:
        yield ("read-only-mount" if mount.read_only else "writable-mount"), where


def _limits(d: Declared) -> Iterator[Weakness]:
    for name, limit in (("memory", d.memory), ("process", d.processes), ("cpu", d.cpus)):
        if limit is None:
            yield f"no-{name}-limit", "none is declared"


def _rights(d: Declared, place: SwitchLocation) -> Iterator[Weakness]:
    if d.privileged:
        yield "privileged", "privileged is set"
    known = _names()
    if reaching := [name for name in d.cap_add if name in known["reaching"]]:
        yield "capabilities", f"added: {', '.join(reaching)}"
    usual = known["usual"] if place.agent.uid else ()
    if others := [name for name in d.cap_add if name not in (*known["reaching"], *usual)]:
        yield "added-capabilities", f"added: {', '.join(others)}"
    if "ALL" not in d.cap_drop:
        yield "default-capabilities", f"dropped: {', '.join(d.cap_drop) or 'none'}"
    if secret := [each.name for each in d.environment if each.secret]:
        yield "secrets", f"variables {', '.join(secret)} (values not shown)"
    if place.agent.uid == 0:
        yield "agent-is-root", f"the agent is user {place.agent.user}, uid 0"
    if not any(each.replace(":", "=") in ("no-new-privileges", "no-new-privileges=true") for each in d.security):
        yield "gains-privileges", "no-new-privileges is not set"
    if off := [each for each in d.security if each.replace(":", "=").endswith(("=unconfined", "label=disable"))]:
        yield "unconfined", ", ".join(off)
    if not d.read_only:
        yield "writable-root", "read_only is not set"


def _switch(setup: Setup) -> Iterator[Weakness]:
    place = setup.place
    if place.script is None or place.path is None:
        return
    if may_write(place.script, place.agent) or place.owned:
        yield "switch-writable", f"{place.path} is {_rights_of(place.script)}"
    for folder in setup.folders:
        if may_write(folder, place.agent) or folder.uid == place.agent.uid:
            yield "switch-folder-writable", f"{folder.path} is {_rights_of(folder)}"
    for volume in setup.volumes:
        if place.path.startswith(volume.rstrip("/") + "/"):
            yield "switch-in-volume", f"{place.path} is in the volume {volume}"


def _rights_of(state: FileState) -> str:
    return f"{state.uid}:{state.gid} mode {state.mode or 0:04o}"
