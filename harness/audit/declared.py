"""Parses a container's options from docker run options, a compose file or docker inspect output. No I/O.

Environment variables are checked for secrets. Their values are then discarded, so that no secret appears in a report.
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
    """A container mount. ``source`` is a host path if ``bind`` is true; otherwise it is the name of a volume."""

    source: str
    target: str
    bind: bool
    read_only: bool = False


class Variable(Frozen):
    """An environment variable without its value. ``secret`` is true if the name or value looked like a secret."""

    name: str
    secret: bool


class Declared(Frozen):
    """The declared options of a container.

    Options that aren't declared have docker run's defaults. ``source`` is the kind of input that the options were read
    from, such as "docker inspect". ``memory`` (in bytes), ``processes`` and ``cpus`` are limits; None means unlimited.
    ``security`` contains the values of docker run's ``--security-opt`` option. ``unread`` contains the declared options
    that this parser doesn't understand.
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
    """Parse an environment variable of the form ``NAME=value``.

    The value is checked for secrets and then discarded.
    """
    name, _, value = text.partition("=")
    named = bool(_SECRET_NAME.search(name)) and bool(value) and not name.upper().endswith(("_FILE", "_PATH"))
    return Variable(name=name, secret=named or bool(_SECRET_VALUE.search(value)))


def capabilities(names: Iterable[Any]) -> tuple[str, ...]:
    """Convert names of Linux capabilities to upper case and remove the prefix ``CAP_``."""
    return tuple(str(name).upper().removeprefix("CAP_") for name in names)


def size(text: Any) -> int | None:
    """Parse a memory size such as ``512m`` and return it in bytes.

    Returns None for 0, which means no limit. Raises UsageError if ``text`` isn't a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?b?)", str(text).strip().lower())
    if not found:
        raise UsageError(f"'{text}' isn't a size: write it like 512m.")
    return int(float(found[1]) * _UNITS[found[2]]) or None


def mount(text: str) -> Mount:
    """Parse a value of docker run's ``--volume`` option, which has the form ``[source:]target[:mode]``."""
    parts = re.split(r":(?![^{]*})", text)  # not at the colon within ${NAME:-default}
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
        parser.add_argument(name, action="store_true")  # accepted, but irrelevant to the check
    for name in ("--privileged", "--read-only"):
        parser.add_argument(name, nargs="?", const="true", choices=("true", "false"), default="false")
    return parser


def from_options(text: str) -> Declared:
    """Parse docker run options from the text of a file. Raises UsageError if the options can't be parsed."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise UsageError(f"The container's options can't be read: {error}.") from error
    given, unread = _parser().parse_known_args(words[2:] if words[:2] == ["docker", "run"] else words)
    return Declared(
        source="docker run's options",
        user=given.user,
        privileged=given.privileged != "false",
        cap_add=capabilities(given.cap_add),
        cap_drop=capabilities(given.cap_drop),
        network=given.network or "bridge",
        pid=given.pid or "",
        ipc=given.ipc or "",
        uts=given.uts or "",
        userns=given.userns or "",
        mounts=(*map(mount, given.volume), *map(_long_mount, given.mount)),
        devices=tuple(given.device),
        environment=tuple(map(variable, given.env)),
        memory=size(given.memory) if given.memory else None,
        processes=_count(given.pids_limit),
        cpus=_cpus(given.cpus) or (1.0 if given.cpu_quota else None),
        read_only=given.read_only != "false",
        security=tuple(given.security_opt),
        unread=(*(word for word in unread if word.startswith("-")), *(f"--env-file {name}" for name in given.env_file)),
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
    """Parse a limit on the number of processes.

    Returns None if ``text`` is 0, negative, empty or None, because these values mean no limit. Raises UsageError if
    ``text`` isn't a whole number.
    """
    try:
        count = int(text or 0)
    except (TypeError, ValueError) as error:
        raise UsageError(f"'{text}' isn't a number of processes: write it like 256.") from error
    return count if count > 0 else None


def _cpus(text: Any) -> float | None:
    try:
        return float(text or 0) or None
    except (TypeError, ValueError) as error:
        raise UsageError(f"'{text}' isn't a number of CPUs: write it like 0.5.") from error


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
    """Parse the options of one service in a compose file.

    ``text`` is the file's content. ``service`` is the service's name; it may be None if the file contains only one
    service. Raises UsageError if the file is invalid or the service doesn't exist.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The compose file isn't valid YAML: {' '.join(str(error).split())}.") from error
    services = document.get("services") if isinstance(document, Mapping) else None
    if not isinstance(services, Mapping) or not services:
        raise UsageError("The compose file has no services.")
    if service is None and len(services) > 1:
        raise UsageError(f"The compose file has several services: name one as FILE:SERVICE, of {', '.join(services)}.")
    name = service or next(iter(services))
    if not isinstance(services.get(name), Mapping):
        raise UsageError(f"The compose file has no service '{name}': name one of {', '.join(map(str, services))}.")
    return _service(services[name])


def _service(service: Mapping[str, Any]) -> Declared:
    limits = _nested(service, "deploy", "resources", "limits")
    networks = service.get("networks")
    environment = service.get("environment") or ()
    if isinstance(environment, Mapping):
        environment = [f"{name}={'' if value is None else value}" for name, value in environment.items()]
    memory = service.get("mem_limit") or limits.get("memory")
    return Declared(
        source="the compose service",
        user=None if service.get("user") is None else str(service["user"]),
        privileged=service.get("privileged") in (True, "true"),
        cap_add=capabilities(service.get("cap_add") or ()),
        cap_drop=capabilities(service.get("cap_drop") or ()),
        network=str(
            service.get("network_mode") or (f"networks {', '.join(map(str, networks))}" if networks else "default")
        ),
        pid=str(service.get("pid") or ""),
        ipc=str(service.get("ipc") or ""),
        uts=str(service.get("uts") or ""),
        userns=str(service.get("userns_mode") or ""),
        mounts=tuple(_compose_mount(each) for each in service.get("volumes") or ()),
        devices=tuple(map(str, service.get("devices") or ())),
        environment=tuple(variable(str(each)) for each in environment),
        memory=size(memory) if memory else None,
        processes=_count(service.get("pids_limit") or limits.get("pids")),
        cpus=_cpus(service.get("cpus") or limits.get("cpus")),
        read_only=service.get("read_only") in (True, "true"),
        security=tuple(map(str, service.get("security_opt") or ())),
        unread=tuple(sorted(str(key) for key in service if key not in _COMPOSE)),
    )


def _compose_mount(volume: Any) -> Mount:
    if not isinstance(volume, Mapping):
        return mount(str(volume))
    return Mount(
        source=str(volume.get("source") or ""),
        target=str(volume.get("target") or ""),
        bind=volume.get("type") == "bind",
        read_only=bool(volume.get("read_only")),
    )


def _nested(mapping: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        inner = mapping.get(key)
        mapping = inner if isinstance(inner, Mapping) else {}
    return mapping


# ---- docker inspect ----


def from_inspect(text: str) -> Declared:
    """Parse a container's options from the JSON output of ``docker inspect CONTAINER``.

    Raises UsageError if ``text`` isn't the output of ``docker inspect`` for a container.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"This isn't the output of docker inspect: {error}.") from error
    container = document[0] if isinstance(document, list) and document else document
    if not isinstance(container, dict) or "HostConfig" not in container:
        raise UsageError("This isn't the output of docker inspect for a container: it has no HostConfig.")
    return inspected(container)


def inspected(container: Mapping[str, Any]) -> Declared:
    """Return the declared options of a container.

    ``container`` is the container's entry in the JSON output of ``docker inspect``.
    """
    host, config = container["HostConfig"], container.get("Config") or {}
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
            for each in container.get("Mounts") or ()
        ),
        devices=tuple(each.get("PathOnHost", "") for each in host.get("Devices") or ()),
        environment=tuple(variable(each) for each in config.get("Env") or ()),
        memory=host.get("Memory") or None,
        processes=_count(host.get("PidsLimit")),
        cpus=(host.get("NanoCpus") or 0) / 1e9 or (1.0 if host.get("CpuQuota") else None),
        read_only=bool(host.get("ReadonlyRootfs")),
        security=tuple(host.get("SecurityOpt") or ()),
    )
