"""Prepares kill switches for an audit, both those that ship with the lab and those in a user's own image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname

from harness.audit.declared import Declared, inspected, variable
from harness.audit.retarget import PROGRAMS, SwitchLocation, may_write
from harness.audit.setup_check import Setup
from harness.errors import UsageError
from harness.judging.evidence import FileKind, FileState
from harness.resources.data import own_or_shipped
from harness.runs.machine import image_request
from harness.sandbox.docker.engine import Engine
from harness.sandbox.docker.images.user_image import ImageContents
from harness.sandbox.protocol import ImageRequest, Limits, MachineSpec
from harness.sandbox.versions import Versions
from harness.store.records import RunSpec
from harness.tasks.registry import task_for
from harness.tasks.task import AgentUser, Mechanism, Trigger, folders_of

TASK = "math"
SHELL = "/bin/bash"
PLAIN_PATH = re.compile(r"/[\w.+-]+(/[\w.+-]+)*")
LEAST_MEMORY_MB, LEAST_PROCESSES = 64, 32


@dataclass(frozen=True, slots=True)
class OwnSwitch:
    """The options that describe the user's own kill switch.

    ``image`` is the name of the image that contains the kill switch; if it is None, the image is built from
    ``dockerfile``. ``run`` is the command that starts the kill switch, i.e. its path in the image and any arguments; it
    is None if Docker stops the container from outside. ``user`` is the user that runs the agent's commands. ``grace_s``
    is the kill switch's time limit in seconds. ``declared`` contains the declared options of the user's container, or
    is None if no options were given.
    """

    image: str | None
    dockerfile: Path | None
    run: str | None
    trigger: Trigger
    user: str | None
    workdir: str | None
    grace_s: float
    declared: Declared | None

    @property
    def path(self) -> str | None:
        """The path of the kill switch in the image, or None if Docker stops the container from outside."""
        return self.run.split()[0] if self.run else None

    @property
    def name(self) -> str:
        """The name of the kill switch in tables and run ids."""
        return basename(self.path) if self.path else "own"


@dataclass(frozen=True, slots=True)
class Target:
    """A kill switch that is ready to be audited.

    ``run`` is the spec of the run that plays the tactics. ``defined_in`` is the path of the file that defines the kill
    switch. ``stored_image`` and ``versions`` describe the image and the software; both are stored with the run.
    ``not_applied`` describes the container's declared options that the trials don't apply.
    """

    run: RunSpec
    image: ImageRequest
    place: SwitchLocation
    setup: Setup
    defined_in: str
    stored_image: dict[str, object]
    versions: Versions
    not_applied: tuple[str, ...] = ()


def checked(own: OwnSwitch) -> OwnSwitch:
    """Check the options in ``own`` and return ``own`` unchanged. Raises UsageError if an option is invalid."""
    if (own.image is None) is (own.dockerfile is None):
        raise UsageError("Name the image to audit by either --image or --dockerfile.")
    if own.trigger is Trigger.FILE:
        raise UsageError("--trigger must be program, root or engine.")
    if own.trigger is Trigger.ENGINE:
        if own.run is not None:
            raise UsageError("With --trigger engine nothing is run in the container: leave --kill-switch out.")
        return own
    if own.path is None or not PLAIN_PATH.fullmatch(own.path) or ".." in own.path.split("/"):
        raise UsageError("--kill-switch must be the full path of a script or program in the image, in plain letters.")
    if own.trigger is Trigger.PROGRAM and own.run != own.path:
        raise UsageError("With --trigger program the kill switch is run without arguments: name its path alone.")
    return own


# ---- mechanisms that ship ----


async def shipped(engine: Engine, run: RunSpec) -> Target:
    """Prepare an audit of ``run.mechanism``, a kill switch that ships with the lab.

    Raises EngineError if Docker fails.
    """
    image, versions = await engine.prepare(image_request(run))
    ready = run.model_copy(update={"image": image.tag})
    task, mechanism = task_for(run.task, None), run.mechanism
    watched = tuple(path for path, _ in task.protected(mechanism))
    machine = MachineSpec(
        image=image.tag, run_id="audit", trial=0, watched=watched, limits=run.limits, **task.agent.model_dump()
    )
    declared = inspected(await engine.inspect_machine(machine))
    look = await engine.look_into(image.tag, _paths(mechanism.path))
    place = _place(task.agent, mechanism.path, look)
    return Target(
        run=ready,
        image=image_request(run),
        place=place,
        setup=Setup(declared=declared, place=place, folders=_folders(mechanism.path, look)),
        defined_in=f"shutdown_scripts/{mechanism.name}/mechanism.yaml",
        stored_image=image.model_dump(),
        versions=versions,
    )


def _paths(path: str | None) -> tuple[str, ...]:
    return (path, *folders_of(path)) if path else ()


def _folders(path: str | None, look: ImageContents) -> tuple[FileState, ...]:
    return tuple(look.at(folder) for folder in folders_of(path)) if path else ()


def _place(agent: AgentUser, path: str | None, look: ImageContents, lacks: Iterable[str] = ()) -> SwitchLocation:
    if path is None:
        return SwitchLocation(agent=agent, lacks=frozenset(lacks))
    return SwitchLocation(
        agent=agent, path=path, script=look.at(path), folder=look.at(dirname(path)), lacks=frozenset(lacks)
    )


# ---- images of the user's own ----


async def own_target(engine: Engine, own: OwnSwitch, run: RunSpec) -> Target:
    """Prepare an audit of the user's own kill switch.

    ``run`` is the spec of the run that plays the tactics. Raises EngineError if the image can't be built or read, and
    UsageError if the image lacks something that an audit needs.
    """
    name = await engine.build_own(own_or_shipped(own.dockerfile)) if own.dockerfile else str(own.image)
    declared = own.declared or Declared(source="docker run's defaults, since nothing is declared")
    first = await engine.look_into(name, ("/etc/passwd", "/etc/group", SHELL), PROGRAMS)
    if first.at(SHELL).kind is FileKind.MISSING:
        raise UsageError(f"Image '{name}' has no {SHELL}, which runs the agent's commands: add it.")
    user = own.user or declared.user or first.user
    resolved = account(user, first.at("/etc/passwd").content or b"", first.at("/etc/group").content or b"")
    folders = tuple(dict.fromkeys((own.workdir or resolved.home, resolved.workdir, first.workdir, "/tmp")))  # noqa: S108 - a path in the image
    look = await engine.look_into(name, {*_paths(own.path), *folders})
    _must_be_a_file(own.path, look, name)
    agent = _in_writable_folder(resolved, folders, look, name)
    place = _place(agent, own.path, look, set(PROGRAMS) - first.programs)
    mechanism = _mechanism(own, name, place)
    limits = bounded(declared, run.limits)
    ready = run.model_copy(update={"image": name, "agent": agent, "mechanism": mechanism, "limits": limits})
    request = image_request(ready, of_user=True)
    image, versions = await engine.prepare(request)
    declared = declared.model_copy(
        update={"environment": tuple(dict.fromkeys((*declared.environment, *map(variable, first.environment))))}
    )
    setup = Setup(declared=declared, place=place, folders=_folders(own.path, look), volumes=first.volumes)
    return Target(
        run=ready.model_copy(update={"image": image.tag}),
        image=request,
        place=place,
        setup=setup,
        defined_in=str(own.dockerfile or "Dockerfile"),
        stored_image=image.model_dump(),
        versions=versions,
        not_applied=not_applied(declared, limits),
    )


def account(user: str, passwd: bytes, group: bytes) -> AgentUser:
    """Look up the agent's user in an image's passwd and group files.

    ``user`` has the form ``USER`` or ``USER:GROUP``, where each part is a name or a number. An empty string means root.
    ``passwd`` and ``group`` are the contents of the files. Raises UsageError if a name is unknown.
    """
    name, _, of_group = user.partition(":")
    users = [line.split(":") for line in passwd.decode(errors="replace").splitlines() if line.count(":") >= 6]
    groups = [line.split(":") for line in group.decode(errors="replace").splitlines() if line.count(":") >= 3]
    known = next((each for each in users if (name or "0") in (each[0], each[2])), None)
    if known is None and not name.isdecimal():
        raise UsageError(f"The image has no user '{name}': name one of its own, or a number, with --user.")
    uid, gid, home = (int(known[2]), int(known[3]), known[5]) if known else (int(name), 0, "/")
    if of_group:
        found = next((each[2] for each in groups if of_group in (each[0], each[2])), of_group)
        if not found.isdecimal():
            raise UsageError(f"The image has no group '{of_group}': name one of its own, or a number, with --user.")
        gid = int(found)
    return AgentUser(user=known[0] if known else name, uid=uid, gid=gid, home=home or "/", workdir=home or "/")


def _in_writable_folder(agent: AgentUser, folders: Iterable[str], look: ImageContents, image: str) -> AgentUser:
    """Return ``agent`` with its home and working folder set to the first folder that the agent can write to.

    Raises UsageError if the agent can't write to any of ``folders``. ``look`` contains the states of the folders.
    ``image`` is the image's name for the error message.
    """
    for path in folders:
        state = look.at(path)
        if state.kind is FileKind.DIRECTORY and (may_write(state, agent) or (state.mode or 0) & 0o1002 == 0o1002):
            return agent.model_copy(update={"home": path, "workdir": path})
    raise UsageError(f"User '{agent.user}' of image '{image}' can't write to any folder: name one with --workdir.")


def _must_be_a_file(path: str | None, look: ImageContents, image: str) -> None:
    if path is None:
        return
    for folder in reversed(list(folders_of(path))):
        if (state := look.at(folder)).kind is FileKind.SYMLINK:
            raise UsageError(f"{folder} is a link to {state.target} in image '{image}': give a path without links.")
    state = look.at(path)
    if state.kind is FileKind.SYMLINK:
        raise UsageError(f"{path} is a link to {state.target} in image '{image}': give its target to --kill-switch.")
    if state.kind is not FileKind.FILE:
        raise UsageError(f"Image '{image}' has no file {path}: give --kill-switch a path in the image.")


def _mechanism(own: OwnSwitch, image: str, place: SwitchLocation) -> Mechanism:
    where = f"{own.path} in image {image}" if own.path else f"the engine, for image {image}"
    return Mechanism(
        name=own.name,
        about=f"The user's own: {where}.",
        tasks=(TASK,),
        script=own.name if own.path else None,
        path=own.path,
        run=own.run or "a supervisor outside",
        grace_s=own.grace_s,
        source="the user",
        trigger=own.trigger,
        owner="agent" if place.owned else "root",
    )


def bounded(declared: Declared, limits: Limits) -> Limits:
    """Return the lab's ``limits`` with memory and processes capped at the declared limits.

    Neither limit is lowered below the minimum that a trial needs.
    """
    memory = (declared.memory or limits.memory_mb << 20) >> 20
    processes = declared.processes or limits.processes
    return limits.model_copy(
        update={
            "memory_mb": max(LEAST_MEMORY_MB, min(memory, limits.memory_mb)),
            "processes": max(LEAST_PROCESSES, min(processes, limits.processes)),
        }
    )


def not_applied(declared: Declared, limits: Limits) -> tuple[str, ...]:
    """Return a description of each declared option that the trials don't apply.

    A description may also say what the trials apply instead. ``limits`` are the resource limits of the trials.
    """
    d = declared
    spaces = {"pid": d.pid, "ipc": d.ipc, "uts": d.uts, "userns": d.userns}
    profiles = " ".join(each for each in d.security if not each.startswith("no-new-privileges"))
    options = [
        ("privileged", d.privileged),
        (f"cap_add {' '.join(d.cap_add)}", d.cap_add),
        *((f"{name} {mode}", mode) for name, mode in spaces.items()),
        (f"network {d.network} (trials have none)", d.network != "none"),
        *((f"mount {each.source or 'volume'} at {each.target}", True) for each in d.mounts),
        (f"devices {' '.join(d.devices)}", d.devices),
        (f"security_opt {profiles} (trials have the engine's default profiles)", profiles),
        ("read_only (the tactics need a folder to write to)", d.read_only),
        (f"the environment: {' '.join(each.name for each in d.environment)}", d.environment),
        (f"memory {_mb(d.memory)} (trials have {limits.memory_mb} MB)", _mb(d.memory) != f"{limits.memory_mb} MB"),
        (f"processes {d.processes or 'unlimited'} (trials have {limits.processes})", d.processes != limits.processes),
        (f"cpus {d.cpus or 'unlimited'} (trials have {limits.cpus:g})", d.cpus != limits.cpus),
        *((f"{each} (not understood)", True) for each in d.unread),
    ]
    return tuple(words for words, was_declared in options if was_declared)


def _mb(size: int | None) -> str:
    return f"{size >> 20} MB" if size else "unlimited"
