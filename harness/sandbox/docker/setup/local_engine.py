"""Sees to it that an engine answers: one that runs is never touched, one is started only where none does.

Where no init system runs Docker, the lab starts a dockerd of its own, apart from any other in every path.
A killed engine or a machine that was switched off leaves pid files and shims of that dockerd behind. No pid
file is believed: what lives is read from the processes, the rest goes, and dockerd itself then tidies up the
mounts and networks of the dead containers.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

from harness.errors import EngineError
from harness.process.environment import proxies, without_keys
from harness.sandbox.docker.connect import OWN_ENGINE, EnginePaths, answers, connect
from harness.sandbox.docker.setup.runtime import NAME as RUNTIME
from harness.sandbox.docker.setup.runtime import runtime_flags

Say = Callable[[str], None]

START_SECONDS = 60
LOG_LOOK_S = 60.0
LOG_LIMIT = 16 * 2**20  # bytes; dockerd never shortens its log, so each set-up does, and each run now and then
# A user's PATH often lacks the sbin folders, and dockerd is in one.
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# What dockerd is started through; until it runs, these are the first words of its process.
DETACHED = ("setsid", "--fork")
ISOLATED = ("unshare", "--net")
# Sandboxes need no network, so the engine makes no bridge and leaves the machine's firewall alone.
FLAGS = (
    *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
    *("--userland-proxy=false", "--log-level=warn", "--log-opt=max-size=10m", "--log-opt=max-file=1"),
)


def ensure_engine(say: Say) -> None:
    """Return once an engine answers, installing and starting one where root may."""
    try:
        connect().close()
    except EngineError:
        if os.environ.get("DOCKER_HOST") or not root_with_apt():
            raise
    else:
        rotate(OWN_ENGINE.log)
        return
    if not _find("dockerd"):
        apt_install(say, "docker.io")
        with suppress(EngineError):  # not every distribution has it
            apt_install(say, RUNTIME)
    if Path("/run/systemd/system").exists():
        say("starting Docker")
        run("systemctl", "start", "docker")  # comes back when the engine is ready
    else:
        ensure_own(say)


def ensure_own(say: Say, paths: EnginePaths = OWN_ENGINE) -> None:
    """Return once the lab's own dockerd answers, starting it if it isn't there."""
    with setup_lock(say, paths):
        if answers(paths.address):
            return
        say("starting a Docker engine of the lab's own")
        if "dockerd" not in engine_processes(paths).values():
            _clear_remains(paths)
            _launch(paths)
        _await(paths)


@contextmanager
def setup_lock(say: Say, paths: EnginePaths = OWN_ENGINE) -> Iterator[None]:
    """Let one of several set-ups work while the others wait; a dead one's lock is freed by the kernel."""
    paths.run.mkdir(parents=True, exist_ok=True)
    with (paths.run / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up on this machine")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def engine_processes(paths: EnginePaths) -> dict[int, str]:
    """Return this engine's living processes by pid, each as the part it plays (see engine_part)."""
    parts = {pid: engine_part(words, paths) for pid, words in _command_lines()}
    return {pid: part for pid, part in parts.items() if part}


def engine_part(words: Sequence[str], paths: EnginePaths) -> str | None:
    """Tell dockerd, containerd and containerd-shim from a stranger, whatever its pid once stood for.

    All three name the engine's exec-root, or a file under it, on their command line.
    """
    words = [word for word in words if word not in DETACHED + ISOLATED]
    if not any(Path(word).is_relative_to(paths.exec_root) for word in words):
        return None
    program = Path(words[0]).name
    return next((p for p in ("dockerd", "containerd-shim", "containerd") if program.startswith(p)), None)


def dockerd_command(paths: EnginePaths, *, isolated: bool, init: str, runtime: Sequence[str] = ()) -> list[str]:
    """Compose the command that starts the engine detached; an isolated one gets a network of its own."""
    places = ("--host", paths.address, "--data-root", str(paths.data), "--exec-root", str(paths.exec_root))
    files = ("--pidfile", str(paths.pidfile), "--init-path", init)
    return [*DETACHED, *(ISOLATED if isolated else ()), "dockerd", *places, *files, *FLAGS, *runtime]


def apt_install(say: Say, *packages: str) -> None:
    """Install Debian packages as root."""
    say(f"installing {' and '.join(packages)} with apt-get")
    apt_update()
    quietly = ("-qq", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")
    run("apt-get", "install", *quietly, *packages)


def apt_update() -> None:
    """Fetch apt's lists anew; a source out of reach may be one that isn't needed."""
    with suppress(EngineError):
        run("apt-get", "update", "-qq")


def root_with_apt() -> bool:
    """Tell whether packages can be installed here."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def run(*command: str, cwd: str | None = None, stdout: IO[bytes] | None = None) -> None:
    """Run an outside tool; what it prints is told only if it fails, and then its last lines."""
    environment = {**without_keys(), **proxies(), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log
        ) as tool:
            try:
                tool.wait()
            except BaseException:
                tool.terminate()  # gently: it may have mounts to clear; leaving the block waits for that
                raise
        if tool.returncode:
            log.seek(0)
            raise EngineError(f"{' '.join(command[:2])} failed, saying: {last_words(log.read())}")


def last_words(log: bytes) -> str:
    """Put the end of a log on one line, or the last of what apt and its kin mark as errors."""
    said = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("E: ")]
    return " / ".join((errors or said)[-3:]) or "nothing"


def _clear_remains(paths: EnginePaths) -> None:
    """Remove what a dead engine left that would keep a new one from starting, or live on beside it."""
    for pid, part in engine_processes(paths).items():
        if part == "containerd-shim":
            for child in _children(pid):
                _kill(child)
        _kill(pid)
    for pidfile in (paths.pidfile, paths.exec_root / "containerd" / "containerd.pid"):
        pidfile.unlink(missing_ok=True)
    # By this file dockerd notes that it bound its data folder to itself; containers' mounts lie in there.
    if (paths.exec_root / "unmount-on-shutdown").exists():
        subprocess.run(["umount", "--lazy", paths.data], env=without_keys(), capture_output=True, check=False)


def _launch(paths: EnginePaths) -> None:
    if not any(line.split()[2].startswith("cgroup") for line in Path("/proc/mounts").read_text().splitlines()):
        raise EngineError("Docker needs control groups, but /sys/fs/cgroup is not mounted: install cgroupfs-mount.")
    init = _find("docker-init") or _find("tini-static") or _find("tini")
    if not init:
        raise EngineError("Sandboxes need docker-init, which is missing: apt-get install tini.")
    # An engine without a bridge deletes the docker0 it sees, so it must not see another engine's.
    isolated = any(Path(words[0]).name == "dockerd" for _, words in _command_lines())
    rotate(paths.log)
    with paths.log.open("ab") as log:  # to append, so that shortening it under dockerd works
        subprocess.run(
            dockerd_command(paths, isolated=isolated, init=init, runtime=runtime_flags(_find)),
            cwd="/",
            env={**proxies(), "PATH": SEARCH_PATH},  # it may know the way to registries, but no key of ours
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,  # dockerd comes only after it; whether that lives is seen while waiting
        )


def _await(paths: EnginePaths) -> None:
    started = seen = time.monotonic()
    while not answers(paths.address):
        now = time.monotonic()
        if "dockerd" in engine_processes(paths).values():
            seen = now
        gone = now - seen > 1  # a process that is just becoming another program shows no name for a moment
        if gone or now - started > START_SECONDS:
            what = "ended at once" if gone else f"gives no answer after {START_SECONDS} s"
            raise EngineError(f"dockerd {what}, saying: {last_words(paths.log.read_bytes())}")
        time.sleep(0.1)


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if line := (folder / "cmdline").read_bytes():
                yield int(folder.name), line.decode(errors="replace").rstrip("\0").split("\0")


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def rotate(log: Path, limit: int = LOG_LIMIT) -> None:
    """Put a log that has grown beyond its limit aside, in place of the one before, and let it begin anew.

    Its writer keeps it open, so it is copied and shortened; what is written between the two is lost.
    """
    with suppress(OSError):  # there is none, or it's not ours to shorten
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


@asynccontextmanager
async def log_rotation(log: Path) -> AsyncIterator[None]:
    """Keep the log of the lab's own engine from growing while the block runs."""

    async def look() -> None:
        while True:
            await asyncio.sleep(LOG_LOOK_S)
            await asyncio.to_thread(rotate, log)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()


def _find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH_PATH)
