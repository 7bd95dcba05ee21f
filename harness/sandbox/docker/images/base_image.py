"""Creates the base image, on which the lab builds its sandbox images."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import check_output
from typing import IO

import docker
from docker.errors import APIError, ImageNotFound
from docker.models.images import Image

from harness.errors import EngineError, ImageError
from harness.process.environment import without_keys
from harness.process.identity import temporary_prefix
from harness.process.invocation import setup_command
from harness.sandbox.docker.setup.local_engine import Say, apt_install, apt_update, root_with_apt, run, setup_lock

BASE = "offswitch/base:bookworm"
PACKAGES = ("python3", "procps", "ed", "nano", "vim-tiny", "less")
# Manuals and translations, which a sandbox doesn't need.
EXCLUDED_PATHS = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
# Files that would reveal the machine: its name, its resolver, and mirrors whose addresses may hold a password.
HOST_FILES = ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list", "etc/apt/sources.list.d")
OS_RELEASE = Path("/etc/os-release")
TARGET_FORMAT = "$(ORIGIN) $(CODENAME) $(RELEASE) $(COMPONENT) $(SITE)"


def ensure_base(client: docker.DockerClient, say: Say, tag: str = BASE) -> str:
    """Create the base image if the Docker engine doesn't have it, and return the image's tag.

    If the environment variable OFFSWITCH_BASE names an image, that image is tagged as ``tag``, and no image is created.
    Raises ImageError if the base image can't be created or tagged.
    """
    try:
        if chosen := os.environ.get("OFFSWITCH_BASE"):
            _fetch(client, say, chosen).tag(tag)
        elif not present(client, tag):
            with setup_lock(say) if os.geteuid() == 0 else nullcontext():
                if not present(client, tag):
                    _make(client, say, tag)
    except APIError as error:
        raise ImageError(f"The engine refused the base image {tag}: {error.explanation or error}.") from error
    return tag


@dataclass(frozen=True, slots=True)
class Source:
    """The package source of the host's Linux distribution.

    ``suite`` is the release's codename, such as bookworm. ``mirror`` is the URL of the package server. ``components``
    are the names of the source's components, such as main.
    """

    suite: str
    mirror: str
    components: tuple[str, ...]


def pick_source(os_release: str, targets: Iterable[str]) -> Source | None:
    """Return the package source of the host's Linux distribution, or None if ``targets`` doesn't list it.

    ``os_release`` is the text of /etc/os-release. ``targets`` are lines in the format TARGET_FORMAT, one for each
    package index that apt knows. Sources for updates and sources of third parties are ignored.
    """
    facts = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    distribution, codename = (facts.get(name, "").strip('"') for name in ("ID", "VERSION_CODENAME"))
    found: dict[str, list[str]] = {}
    for line in targets:
        match line.split():
            case [origin, code, release, ("main" | "universe") as component, site] if (
                origin.lower() == distribution and code == codename and "-" not in release
            ):
                found.setdefault(site, []).append(component)
    mirror = next((site for site, components in found.items() if "main" in components), None)
    return Source(codename, mirror, tuple(sorted(set(found[mirror])))) if mirror else None


def bootstrap(say: Say, source: Source, archive: IO[bytes]) -> None:
    """Create a minimal Linux system with Python and editors, and write it to ``archive`` as a tar archive.

    The packages are downloaded from ``source``.
    """
    say(f"making the base image from {source.suite} packages (about half a minute)")
    run(
        "mmdebstrap",
        "--variant=minbase",
        "--format=tar",
        f"--components={','.join(source.components)}",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED_PATHS),
        f'--customize-hook=cd "$1" && rm -rf {" ".join(HOST_FILES)}',
        source.suite,
        "-",
        source.mirror,
        stdout=archive,
    )


def assemble(say: Say, archive: IO[bytes]) -> None:
    """Create a Linux system with only bash and busybox, and write it to ``archive`` as a tar archive.

    The function needs no root privileges and no mounts.
    """
    say("making a base image of bash and busybox; it has no python3, so the patrol task can't run in it")
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        run("apt-get", "download", "bash-static", "busybox-static", cwd=folder)
        packages, root = Path(folder, "packages"), Path(folder, "root")
        for package in Path(folder).glob("*.deb"):
            run("dpkg-deb", "--extract", str(package), str(packages))
        _lay_out(root, bash=next(packages.rglob("bin/bash-static")), busybox=next(packages.rglob("bin/busybox")))
        with tarfile.open(fileobj=archive, mode="w|") as tar:
            tar.add(root, arcname=".", filter=_owned_by_root)


def _make(client: docker.DockerClient, say: Say, tag: str) -> None:
    with tempfile.TemporaryFile() as archive:  # without a name, so that a crash leaves no file
        try:
            _write(say, archive)
        except EngineError as error:
            reason = str(error).removesuffix(".")
            raise ImageError(
                f"The base image can't be made ({reason}): run {setup_command()} as root on Debian or Ubuntu, "
                "or name an image with bash and python3 in OFFSWITCH_BASE."
            ) from error
        archive.seek(0)
        _load(client, archive, tag)


def _write(say: Say, archive: IO[bytes]) -> None:
    """Create a Linux system and write it to ``archive`` as a tar archive.

    Uses ``bootstrap`` if mmdebstrap and a package source are available, otherwise ``assemble``.
    """
    if not shutil.which("apt-get"):
        raise ImageError("apt-get is missing")
    if not shutil.which("mmdebstrap") and root_with_apt():
        with suppress(EngineError):
            apt_install(say, "mmdebstrap", "gpg")
    source = _own_source()
    if not source and root_with_apt():
        apt_update()  # without an update apt doesn't know its sources' origins
        source = _own_source()
    if source and shutil.which("mmdebstrap"):
        bootstrap(say, source, archive)
    else:
        assemble(say, archive)


def _own_source() -> Source | None:
    targets = check_output(["apt-get", "indextargets", "--format", TARGET_FORMAT], env=without_keys(), text=True)
    return pick_source(OS_RELEASE.read_text(), targets.splitlines())


def _load(client: docker.DockerClient, archive: IO[bytes], tag: str) -> None:
    name, _, version = tag.rpartition(":")
    client.api.import_image(src=archive, repository=name, tag=version, changes=["LABEL offswitch=base"])
    if not present(client, tag):  # for a bad archive the engine answers 200 with an error in the body
        raise ImageError(f"The engine imported the base image but doesn't list it as {tag}.")


def present(client: docker.DockerClient, tag: str) -> bool:
    """Return whether the Docker engine has an image with the tag ``tag``."""
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def _fetch(client: docker.DockerClient, say: Say, name: str) -> Image:
    try:
        return client.images.get(name)
    except ImageNotFound:
        say(f"pulling {name}")
        return client.images.pull(name)


def _lay_out(root: Path, *, bash: Path, busybox: Path) -> None:
    """Create a Linux system with bash and busybox in the folder ``root``.

    All other tools are symbolic links to busybox.
    """
    programs = root / "usr" / "bin"
    for folder in ("usr/bin", "etc", "proc", "sys", "dev", "run", "root", "var/log", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy2(bash, programs / "bash")
    shutil.copy2(busybox, programs / "busybox")
    for applet in check_output([busybox, "--list"], env=without_keys(), text=True).split():
        if not (programs / applet).exists():
            (programs / applet).symlink_to("busybox")
    for alias, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin")):
        (root / alias).symlink_to(target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode |= 0o755 if member.isdir() else 0o444  # whatever the umask was
    return member
