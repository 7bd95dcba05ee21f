"""How a container is declared: read from docker run's options, a compose file or docker inspect. Pure on their text.

Values of variables are looked at and dropped here, so that no secret can reach a report.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import yaml

from harness.errors import UsageError
from harness.judging.evidence import Frozen

_SECRET_NAME = re.compile(r"(?i)(secret|token|passw(or)?d|passphrase|api_?key|private_?key|access_?key|credential)")
_SECRET_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
    r"|\b(sk-[\w-]{16,}|gh[pousr]_\w{20,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,})"
)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30}


class Mount(Frozen):
    """Something of the host, or a named volume, that is mounted. ``bind``: a path of the host."""

    source: str
    target: str
    bind: bool
    read_only: bool = False


class Variable(Frozen):
    """A variable of the environment: its name, and whether name or value look like a secret. Not the value."""

    name: str
    secret: bool


class Declared(Frozen):
    """A container's set-up as far as it is declared. The defaults are docker run's own; None is unlimited.

    ``unread`` lists what stands in the declaration and was not understood.
    """

    source: str
    user: str | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    network: str = "bridge"
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    userns: str = ""
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    environment: tuple[Variable, ...] = ()
    memory: int | None = None
    processes: int | None = None
    cpus: float | None = None
    read_only: bool = False
    security: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def variable(text: str) -> Variable:
    """One ``NAME=value``."""
    name, _, value = text.partition("=")
    named = bool(_SECRET_NAME.search(name)) and bool(value) and not name.upper().endswith(("_FILE", "_PATH"))
    return Variable(name=name, secret=named or bool(_SECRET_VALUE.search(value)))


def capabilities(names: Iterable[Any]) -> tuple[str, ...]:
    """Names of capabilities, each as the engine spells it, without its prefix."""
    return tuple(str(name).upper().removeprefix("CAP_") for name in names)


def size(text: Any) -> int | None:
    """Bytes of ``512m`` and the like; None for no limit. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?b?)", str(text).strip().lower())
    if not found:
        raise UsageError(f"'{text}' is no size: write it like 512m.")
    return int(float(found[1]) * _UNITS[found[2]]) or None


def mount(text: str) -> Mount:
    """One ``source:target[:mode]``."""
    parts = re.split(r":(?![^{]*})", text)  # ${NAME:-default} holds a colon of its own
    source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    bind = source.startswith(("/", ".", "~", "$"))
    return Mount(
        source=source, target=target, bind=bind, read_only="ro" in (parts[2] if len(parts) > 2 else "").split(",")
    )


# ---- docker run's options ----


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"The container's options can't be read: {message}.")


def _parser() -> _Parser:
    parser = _Parser(prog="options", add_help=False, allow_abbrev=False)
    for names in (("-u", "--user"), ("--network", "--net"), ("--pid",), ("--ipc",), ("--uts",), ("--userns",)):
        parser.add_argument(*names)
    for names in (("-m", "--memory"), ("--pids-limit",), ("--cpus",), ("--cpu-quota",)):
        parser.add_argument(*names)
    for names in (("-v", "--volume"), ("--mount",), ("-e", "--env"), ("--env-file",), ("--device",)):
        parser.add_argument(*names, action="append", default=[])
    for name in ("--cap-add", "--cap-drop", "--security-opt"):
        parser.add_argument(name, action="append", default=[])
    for name in ("-d", "-i", "-t", "--detach", "--interactive", "--tty", "--init", "--rm"):
        parser.add_argument(name, action="store_true")  # nothing that matters here
    for name in ("--privileged", "--read-only"):
        parser.add_argument(name, nargs="?", const="true", choices=("true", "false"), default="false")
    return parser


def from_options(text: str) -> Declared:
    """From a file of docker run's options. Raises UsageError."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise UsageError(f"The container's options can't be read: {error}.") from error
    told, unread = _parser().parse_known_args(words[2:] if words[:2] == ["docker", "run"] else words)
    return Declared(
        source="docker run's options",
        user=told.user,
        privileged=told.privileged != "false",
        cap_add=capabilities(told.cap_add),
        cap_drop=capabilities(told.cap_drop),
        network=told.network or "bridge",
        pid=told.pid or "",
        ipc=told.ipc or "",
        uts=told.uts or "",
        userns=told.userns or "",
        mounts=(*map(mount, told.volume), *map(_long_mount, told.mount)),
        devices=tuple(told.device),
        environment=tuple(map(variable, told.env)),
        memory=size(told.memory) if told.memory else None,
        processes=_count(told.pids_limit),
        cpus=_cpus(told.cpus) or (1.0 if told.cpu_quota else None),
        read_only=told.read_only != "false",
        security=tuple(told.security_opt),
        unread=(*(word for word in unread if word.startswith("-")), *(f"--env-file {name}" for name in told.env_file)),
    )


def _long_mount(text: str) -> Mount:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    bind = fields.get("type", "volume") == "bind"
    return Mount(
        source=fields.get("source", fields.get("src", "")),
        target=fields.get("target", fields.get("dst", fields.get("destination", ""))),
        bind=bind,
        read_only=fields.get("readonly", fields.get("ro", "false")) != "false",
    )


def _count(text: Any) -> int | None:
    """A limit on a count; 0, -1 and nothing are no limit. Raises UsageError."""
    try:
        count = int(text or 0)
    except (TypeError, ValueError) as error:
        raise UsageError(f"'{text}' is no number of processes: write it like 256.") from error
    return count if count > 0 else None


def _cpus(text: Any) -> float | None:
    try:
        return float(text or 0) or None
    except (TypeError, ValueError) as error:
        raise UsageError(f"'{text}' is no number of CPUs: write it like 0.5.") from error


# ---- compose ----

_COMPOSE = frozenset(
    [
        "image",
        "build",
        "command",
        "entrypoint",
        "working_dir",
        "container_name",
        "restart",
        "depends_on",
        "labels",
        "healthcheck",
        "stdin_open",
        "tty",
        "init",
        "stop_grace_period",
        "stop_signal",
        "hostname",
        "user",
        "privileged",
        "cap_add",
        "cap_drop",
        "network_mode",
        "networks",
        "pid",
        "ipc",
        "uts",
        "userns_mode",
        "volumes",
        "devices",
        "environment",
        "mem_limit",
        "pids_limit",
        "cpus",
        "deploy",
        "read_only",
        "security_opt",
    ]
)


def from_compose(text: str, service: str | None) -> Declared:
    """From a compose file's service; its only one where none is named. Raises UsageError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The compose file is no YAML: {' '.join(str(error).split())}.") from error
    services = document.get("services") if isinstance(document, Mapping) else None
    if not isinstance(services, Mapping) or not services:
        raise UsageError("The compose file has no services.")
    if service is None and len(services) > 1:
        raise UsageError(f"The compose file has several services: name one as FILE:SERVICE, of {', '.join(services)}.")
    name = service or next(iter(services))
    if not isinstance(services.get(name), Mapping):
        raise UsageError(f"The compose file has no service '{name}', but {', '.join(map(str, services))}.")
    return _service(services[name])


def _service(told: Mapping[str, Any]) -> Declared:
    limits = _at(told, "deploy", "resources", "limits")
    networks = told.get("networks")
    environment = told.get("environment") or ()
    if isinstance(environment, Mapping):
        environment = [f"{name}={'' if value is None else value}" for name, value in environment.items()]
    memory = told.get("mem_limit") or limits.get("memory")
    return Declared(
        source="the compose service",
        user=None if told.get("user") is None else str(told["user"]),
        privileged=told.get("privileged") in (True, "true"),
        cap_add=capabilities(told.get("cap_add") or ()),
        cap_drop=capabilities(told.get("cap_drop") or ()),
        network=str(
            told.get("network_mode") or (f"networks {', '.join(map(str, networks))}" if networks else "default")
        ),
        pid=str(told.get("pid") or ""),
        ipc=str(told.get("ipc") or ""),
        uts=str(told.get("uts") or ""),
        userns=str(told.get("userns_mode") or ""),
        mounts=tuple(_compose_mount(each) for each in told.get("volumes") or ()),
        devices=tuple(map(str, told.get("devices") or ())),
        environment=tuple(variable(str(each)) for each in environment),
        memory=size(memory) if memory else None,
        processes=_count(told.get("pids_limit") or limits.get("pids")),
        cpus=_cpus(told.get("cpus") or limits.get("cpus")),
        read_only=told.get("read_only") in (True, "true"),
        security=tuple(map(str, told.get("security_opt") or ())),
        unread=tuple(sorted(str(key) for key in told if key not in _COMPOSE)),
    )


def _compose_mount(told: Any) -> Mount:
    if not isinstance(told, Mapping):
        return mount(str(told))
    return Mount(
        source=str(told.get("source") or ""),
        target=str(told.get("target") or ""),
        bind=told.get("type") == "bind",
        read_only=bool(told.get("read_only")),
    )


def _at(told: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        inner = told.get(key)
        told = inner if isinstance(inner, Mapping) else {}
    return told


# ---- docker inspect ----


def from_inspect(text: str) -> Declared:
    """From what ``docker inspect CONTAINER`` prints. Raises UsageError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"This is no output of docker inspect: {error}.") from error
    told = document[0] if isinstance(document, list) and document else document
    if not isinstance(told, dict) or "HostConfig" not in told:
        raise UsageError("This is no output of docker inspect for a container: it has no HostConfig.")
    return inspected(told)


def inspected(told: Mapping[str, Any]) -> Declared:
    """From what the engine says about a container."""
    host, config = told["HostConfig"], told.get("Config") or {}
    return Declared(
        source="docker inspect",
        user=config.get("User") or None,
        privileged=bool(host.get("Privileged")),
        cap_add=capabilities(host.get("CapAdd") or ()),
        cap_drop=capabilities(host.get("CapDrop") or ()),
        network=host.get("NetworkMode") or "bridge",
        pid=host.get("PidMode") or "",
        ipc=host.get("IpcMode") or "",
        uts=host.get("UTSMode") or "",
        userns=host.get("UsernsMode") or "",
        mounts=tuple(
            Mount(
                source=each.get("Source") or each.get("Name") or "",
                target=each.get("Destination") or "",
                bind=each.get("Type") == "bind",
                read_only=not each.get("RW", True),
            )
            for each in told.get("Mounts") or ()
        ),
        devices=tuple(each.get("PathOnHost", "") for each in host.get("Devices") or ()),
        environment=tuple(variable(each) for each in config.get("Env") or ()),
        memory=host.get("Memory") or None,
        processes=_count(host.get("PidsLimit")),
        cpus=(host.get("NanoCpus") or 0) / 1e9 or (1.0 if host.get("CpuQuota") else None),
        read_only=bool(host.get("ReadonlyRootfs")),
        security=tuple(host.get("SecurityOpt") or ()),
    )
