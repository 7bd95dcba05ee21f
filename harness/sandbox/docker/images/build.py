"""Builds the sandbox image for a run from a base image, a task's programs and a kill switch."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from posixpath import dirname

import docker
import docker.errors

from harness.errors import ImageError
from harness.judging.evidence import Frozen
from harness.process.environment import without_keys
from harness.process.identity import temporary_prefix
from harness.resources.data import ROOT
from harness.sandbox.docker.images.base_image import present
from harness.sandbox.docker.images.compiler import find_compiler
from harness.sandbox.docker.labels import owner_labels
from harness.tasks.registry import image_folder, mechanism_folder
from harness.tasks.task import Mechanism, Task

REPOSITORY = "offswitch/sandbox"
CONSOLE = ("/usr/sbin/console", 0o700, ROOT / "sandbox_images" / "console" / "console.c")


class Image(Frozen):
    """A built image, as stored in a run's records.

    ``name`` is the name under which the image was requested. ``tag`` and ``id`` are the image's Docker tag and ID.
    ``base`` is the ID of the base image. ``packages`` maps the name of each installed Debian package to its version.
    """

    name: str
    tag: str
    id: str
    base: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file of a Docker build context.

    ``path`` is the file's path in the image. If ``source`` is True, ``content`` is C source code, and the image
    contains the compiled program instead.
    """

    path: str
    mode: int
    content: bytes
    source: bool = False

    def built(self) -> bytes:
        """Return the file's content in the image, which is the compiled program if the file is C source code.

        Raises ImageError if the C source doesn't compile.
        """
        return _compiled(self.content) if self.source else self.content


def build_image(client: docker.DockerClient, name: str, base: str, task: Task, mechanism: Mechanism) -> Image:
    """Build the sandbox image for ``task`` and ``mechanism`` if it doesn't exist, and return the image.

    ``name`` is the name of a folder in sandbox_images/, ``base`` is the base image's tag, and ``mechanism`` is the kill
    switch. Raises ImageError if the image can't be built.
    """
    base_id = str(client.images.get(base).id)
    folder = image_folder(name)
    root = [*_tree(folder / "root"), *_programs(task)]
    if task.root:
        root.extend(_tree(task.root))
    own: list[ContextFile] = []
    if mechanism.script and mechanism.path:
        script = (mechanism_folder(mechanism.name) / mechanism.script).read_bytes()
        placed = ContextFile(mechanism.path, mechanism.mode, script, source=mechanism.script.endswith(".c"))
        (own if mechanism.owner == "agent" else root).append(placed)
    dockerfile = (folder / "Dockerfile").read_bytes()
    arguments = _arguments(task, base)
    tag = f"{REPOSITORY}:{_digest(base_id, dockerfile, arguments, root, own)}"
    if not present(client, tag):
        _build(client, tag, _context(dockerfile, root, own, task), arguments)
    return _image(client, name, tag, base_id)


def derived_image(client: docker.DockerClient, base: str, task: Task) -> Image:
    """Build an image that adds the lab's console and the task's programs to the user's image ``base``.

    If the image exists already, it isn't built again. Folders that exist in ``base`` keep their owner and mode. Raises
    ImageError if the image can't be built.
    """
    base_id = str(client.images.get(base).id)
    parts = list(_programs(task))
    copies = (f"COPY {json.dumps([f'root{file.path}', file.path])}" for file in parts)
    dockerfile = "\n".join(["ARG BASE", "FROM ${BASE}", *copies, "ENTRYPOINT []", ""]).encode()
    tag = f"{REPOSITORY}:{_digest(base_id, dockerfile, {}, parts, [])}"
    if not present(client, tag):
        _build(client, tag, _context(dockerfile, parts, [], task), {"BASE": base})
    return _image(client, base, tag, base_id)


def _image(client: docker.DockerClient, name: str, tag: str, base: str) -> Image:
    return Image(name=name, tag=tag, id=str(client.images.get(tag).id), base=base, packages=_packages(client, tag))


def _arguments(task: Task, base: str) -> dict[str, str]:
    agent = task.agent
    parent = dirname(agent.workdir).rstrip("/") + "/"
    return {"BASE": base, "AGENT": f"{agent.uid}:{agent.gid}", "PARENT": parent, "WORKDIR": agent.workdir}


def _tree(folder: Path) -> Iterator[ContextFile]:
    """Yield each file under ``folder`` as a ContextFile. Executable files remain executable in the image."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
        yield ContextFile(f"/{file.relative_to(folder)}", mode, file.read_bytes())


def _programs(task: Task) -> Iterator[ContextFile]:
    for path, mode, source in (CONSOLE, *task.sources):
        yield ContextFile(path, mode, source.read_bytes(), source=True)


_compiler = cache(find_compiler)


@cache
def _compiled(source: bytes) -> bytes:
    """Compile C source code to a static program and return the program's bytes.

    Raises ImageError if the code doesn't compile. The error message contains the first line of the compiler's output.
    """
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        out = Path(folder, "program")
        command = [*_compiler(), "-x", "c", "-", "-O2", "-static", "-s", "-w", "-o", str(out)]
        done = subprocess.run(command, input=source, env=without_keys(), capture_output=True, check=False)
        if done.returncode:
            output = done.stderr.decode(errors="replace").strip().splitlines()
            raise ImageError(f"A sandbox program does not compile: {output[0] if output else command[0]}")
        return out.read_bytes()


def _digest(
    base: str, dockerfile: bytes, arguments: dict[str, str], root: list[ContextFile], own: list[ContextFile]
) -> str:
    """Return a hash of everything that an image is built from, for use as the image's tag.

    ``base`` is the base image's ID. ``root`` and ``own`` are the files that root and the agent will own in the image.
    For programs, the C source code is hashed, so no compiler is needed.
    """
    hashed = hashlib.sha256(dockerfile)
    for part in (base, *(f"{k}={v}" for k, v in sorted(arguments.items()) if k != "BASE")):
        hashed.update(part.encode() + b"\0")
    for place, files in (("root", root), ("agent", own)):
        for file in files:
            kind = f"{platform.machine()} " if file.source else ""
            hashed.update(f"{kind}{place}{file.path}\0{file.mode}\0{len(file.content)}\0".encode() + file.content)
    return hashed.hexdigest()[:16]


def _context(dockerfile: bytes, root: list[ContextFile], own: list[ContextFile], task: Task) -> bytes:
    """Pack a Docker build context as a tar archive and return the archive's bytes.

    ``root`` are the files that root will own in the image; they are packed under ``root/``. ``own`` are the files that
    the agent will own; they are packed under ``agent/``.
    """
    parent = dirname(task.agent.workdir).rstrip("/")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        _add(archive, "Dockerfile", 0o644, dockerfile)
        for file in root:
            _add(archive, f"root{file.path}", file.mode, file.built())
        home = tarfile.TarInfo(f"agent{task.agent.workdir.removeprefix(parent)}/")
        home.type, home.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(home)
        for file in own:
            _add(archive, f"agent{file.path.removeprefix(parent)}", file.mode, file.built())
    return packed.getvalue()


def _add(archive: tarfile.TarFile, name: str, mode: int, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.size = mode, len(content)
    archive.addfile(member, io.BytesIO(content))


def _build(client: docker.DockerClient, tag: str, context: bytes, arguments: dict[str, str]) -> None:
    try:
        client.images.build(
            fileobj=io.BytesIO(context),
            custom_context=True,
            tag=tag,
            buildargs=arguments,
            labels={"offswitch": "sandbox"},
            network_mode="none",  # a user's own image may have build triggers (ONBUILD) that run commands
            rm=True,
            forcerm=True,
        )
    except docker.errors.BuildError as error:
        raise ImageError(f"The sandbox image does not build: {error.msg}") from error


def _packages(client: docker.DockerClient, tag: str) -> dict[str, str]:
    """Return the name and version of each Debian package in an image, without running the image.

    Returns an empty dict if the image has no dpkg database.
    """
    container = client.containers.create(tag, "never started", network_mode="none", labels=owner_labels())
    try:
        stream, _ = container.get_archive("/var/lib/dpkg/status")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            file = archive.extractfile("status")
            return _parse_status(file.read().decode() if file else "")
    except docker.errors.NotFound:
        return {}
    finally:
        container.remove(force=True)


def _parse_status(status: str) -> dict[str, str]:
    packages: dict[str, str] = {}
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields:
            packages[fields["Package"]] = fields.get("Version", "")
    return packages


def prepared(
    client: docker.DockerClient, name: str, task: Task, mechanism: Mechanism, ensure_base: Callable[[], str]
) -> Image:
    """Create the base image and the sandbox image if they don't exist, and return the sandbox image.

    ``name`` is the name of a folder in sandbox_images/. ``mechanism`` is the kill switch. ``ensure_base`` is a function
    that creates the base image if necessary and returns the base image's tag. Raises ImageError if an image can't be
    built.
    """
    try:
        return build_image(client, name, ensure_base(), task, mechanism)
    except docker.errors.APIError as error:
        raise ImageError(f"The engine refused to prepare image '{name}': {error.explanation}") from error
