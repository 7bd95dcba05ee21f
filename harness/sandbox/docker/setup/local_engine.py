"""Makes sure that a Docker engine is running, and installs and starts one if necessary.

On a host without systemd, the lab starts its own dockerd with its own paths. A kill or a power failure can leave pid
files and processes of that dockerd, which are removed before a new dockerd is started. Leftover processes are found by
their command lines, because pid files can be wrong.
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

START_TIMEOUT_S = 60
LOG_CHECK_INTERVAL_S = 60.0
MAX_LOG_BYTES = 16 * 2**20  # dockerd never shortens its log, so each set-up and each run does
# A user's PATH often lacks the sbin folders, and dockerd is in one.
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# The programs that start dockerd; until it runs, its process has these words before its name.
DETACHED = ("setsid", "--fork")
ISOLATED = ("unshare", "--net")
# Sandboxes need no network, so the engine makes no bridge and leaves the machine's firewall alone.
FLAGS = (
    *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
    *("--userland-proxy=false", "--log-level=warn", "--log-opt=max-size=10m", "--log-opt=max-file=1"),
)


def ensure_engine(say: Say) -> None:
    """Make sure that a Docker engine is running. Raises EngineError on failure.

    If no engine answers, Docker is installed and started. This needs root and apt-get, and DOCKER_HOST must not be set.
    """
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
        run("systemctl", "start", "docker")  # returns when the engine is ready
    else:
        ensure_own(say)


def ensure_own(say: Say, paths: EnginePaths = OWN_ENGINE) -> None:
    """Start the lab's own dockerd if it isn't running, and wait until it answers.

    Raises EngineError if dockerd can't be started or doesn't answer in time.
    """
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
    """Hold a lock while the ``with`` block runs.

    The lock ensures that only one process at a time sets up this host.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    with (paths.run / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up on this machine")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def engine_processes(paths: EnginePaths) -> dict[int, str]:
    """Return the running processes of the engine that uses ``paths``, as a dict from pid to program name."""
    parts = {pid: engine_part(words, paths) for pid, words in _command_lines()}
    return {pid: part for pid, part in parts.items() if part}


def engine_part(words: Sequence[str], paths: EnginePaths) -> str | None:
    """Return the name of the engine program that a process runs, or None if the process doesn't belong to the engine.

    ``words`` is the process's command line. The name is dockerd, containerd or containerd-shim. The process belongs to
    the engine if one of the words is the folder ``paths.exec_root`` or a path inside that folder.
    """
    words = [word for word in words if word not in DETACHED + ISOLATED]
    if not any(Path(word).is_relative_to(paths.exec_root) for word in words):
        return None
    program = Path(words[0]).name
    return next((p for p in ("dockerd", "containerd-shim", "containerd") if program.startswith(p)), None)


def dockerd_command(paths: EnginePaths, *, isolated: bool, init: str, runtime: Sequence[str] = ()) -> list[str]:
    """Return the command that starts dockerd in the background.

    If ``isolated`` is True, dockerd runs in its own network namespace. ``init`` is the path of the init program for
    containers. ``runtime`` are the options that select a container runtime.
    """
    places = ("--host", paths.address, "--data-root", str(paths.data), "--exec-root", str(paths.exec_root))
    files = ("--pidfile", str(paths.pidfile), "--init-path", init)
    return [*DETACHED, *(ISOLATED if isolated else ()), "dockerd", *places, *files, *FLAGS, *runtime]


def apt_install(say: Say, *packages: str) -> None:
    """Install Debian packages with apt-get, which needs root. Raises EngineError on failure."""
    say(f"installing {' and '.join(packages)} with apt-get")
    apt_update()
    options = ("-qq", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")
    run("apt-get", "install", *options, *packages)


def apt_update() -> None:
    """Update apt's package lists.

    Failures are ignored, because the failed package source may not be needed.
    """
    with suppress(EngineError):
        run("apt-get", "update", "-qq")


def root_with_apt() -> bool:
    """Return whether this process is root and the host has apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def run(*command: str, cwd: str | None = None, stdout: IO[bytes] | None = None) -> None:
    """Run a command and hide its output. Raises EngineError with the last lines of the output if the command fails.

    If ``stdout`` is a file, standard output is written to that file, and the error message quotes only standard error.
    """
    environment = {**without_keys(), **proxies(), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log
        ) as tool:
            try:
                tool.wait()
            except BaseException:
                tool.terminate()  # not killed: it may have mounts to clear; leaving the block waits for it
                raise
        if tool.returncode:
            log.seek(0)
            raise EngineError(f"{' '.join(command[:2])} failed, saying: {last_words(log.read())}")


def last_words(log: bytes) -> str:
    """Join the last lines of a log into one line.

    If the log contains error lines from apt, only those lines are used.
    """
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E: ")]
    return " / ".join((errors or lines)[-3:]) or "nothing"


def _clear_remains(paths: EnginePaths) -> None:
    """Kill leftover processes of an engine that has ended, and remove files and mounts that prevent a new start."""
    for pid, part in engine_processes(paths).items():
        if part == "containerd-shim":
            for child in _children(pid):
                _kill(child)
        _kill(pid)
    for pidfile in (paths.pidfile, paths.exec_root / "containerd" / "containerd.pid"):
        pidfile.unlink(missing_ok=True)
    # dockerd makes this file when it bind-mounts its data folder, which contains the containers' mounts.
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
    with paths.log.open("ab") as log:  # append mode, so that the log can be truncated while dockerd writes
        subprocess.run(
            dockerd_command(paths, isolated=isolated, init=init, runtime=runtime_flags(_find)),
            cwd="/",
            env={**proxies(), "PATH": SEARCH_PATH},  # it needs proxies to reach registries, but none of our API keys
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,  # this only starts dockerd in the background; _await sees whether that runs
        )


def _await(paths: EnginePaths) -> None:
    started_at = running_at = time.monotonic()
    while not answers(paths.address):
        checked_at = time.monotonic()
        if "dockerd" in engine_processes(paths).values():
            running_at = checked_at
        ended = checked_at - running_at > 1  # a process has no command line for a moment while it starts a program
        if ended or checked_at - started_at > START_TIMEOUT_S:
            what = "ended at once" if ended else f"gives no answer after {START_TIMEOUT_S} s"
            raise EngineError(f"dockerd {what}, saying: {last_words(paths.log.read_bytes())}")
        time.sleep(0.1)


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            if line := (folder / "cmdline").read_bytes():
                yield int(folder.name), line.decode(errors="replace").rstrip("\0").split("\0")


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def rotate(log: Path, limit: int = MAX_LOG_BYTES) -> None:
    """Copy a log of more than ``limit`` bytes to a file with the suffix ".1", then empty the log.

    A smaller log isn't changed. An older copy is overwritten. The log isn't renamed, because dockerd would continue to
    write to the renamed file. Lines written between copying and emptying are lost.
    """
    with suppress(OSError):  # there is no log, or this user may not truncate it
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


@asynccontextmanager
async def log_rotation(log: Path) -> AsyncIterator[None]:
    """Check an engine's log once a minute while the ``with`` block runs, and rotate the log if it is too large."""

    async def rotate_regularly() -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_INTERVAL_S)
            await asyncio.to_thread(rotate, log)

    rotating = asyncio.create_task(rotate_regularly())
    try:
        yield
    finally:
        rotating.cancel()


def _find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH_PATH)
