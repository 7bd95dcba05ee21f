import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound  # noqa: TID251 - what the engine's client raises is part of the fake

from harness.errors import EngineError, ImageError
from harness.process.invocation import COMMAND_VARIABLE
from harness.sandbox.docker.connect import DEFAULT_ADDRESS, OWN_ENGINE, EnginePaths, addresses, answers, connect, reach
from harness.sandbox.docker.images.base_image import BASE, Source, ensure_base, pick_source
from harness.sandbox.docker.images.compiler import find_compiler
from harness.sandbox.docker.setup.local_engine import (
    SEARCH_PATH,
    dockerd_command,
    engine_part,
    engine_processes,
    ensure_engine,
    ensure_own,
    run,
    setup_lock,
)
from harness.sandbox.docker.setup.runtime import runtime_flags, split_off

REPOSITORY = Path(__file__).parent.parent
PATHS = EnginePaths(Path("/run/lab"), Path("/var/lib/lab"))


def test_addresses_are_tried_from_the_general_to_the_labs_own() -> None:
    """The addresses are Docker's context, the default socket and the lab's own engine, in order and without repeats."""
    assert addresses({}, "unix:///desktop.sock") == ["unix:///desktop.sock", DEFAULT_ADDRESS, OWN_ENGINE.address]
    assert addresses({}, DEFAULT_ADDRESS) == addresses({}, None) == [DEFAULT_ADDRESS, OWN_ENGINE.address]


def test_docker_host_stands_alone() -> None:
    """With DOCKER_HOST set, only that address is tried."""
    assert addresses({"DOCKER_HOST": "tcp://elsewhere:2376"}, "unix:///desktop.sock") == ["tcp://elsewhere:2376"]


@pytest.mark.parametrize("attempt", [connect, lambda: ensure_engine(pytest.fail)])
def test_dead_docker_host_is_one_sentence(
    attempt: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the engine of DOCKER_HOST doesn't answer, one sentence says so, and no other engine is used or started."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
    with pytest.raises(EngineError) as caught:
        attempt()
    assert str(caught.value) == (
        f"No Docker engine answers (unix://{tmp_path}/dead.sock: no such file or directory): "
        "start that engine, or unset DOCKER_HOST to use another."
    )


@pytest.mark.parametrize(
    ("started_as", "says"), [("./lab", "run ./lab setup as root"), ("", "-m harness.sandbox.docker.setup as root")]
)
def test_who_has_no_engine_is_told_a_command_that_is_there(
    started_as: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is ./lab setup for whoever started the lab by it, and the module that it runs for others."""
    monkeypatch.setenv(COMMAND_VARIABLE, started_as)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("harness.sandbox.docker.connect.addresses", lambda *_: ["unix:///nowhere/docker.sock"])
    with pytest.raises(EngineError, match=says):
        connect()


@pytest.mark.parametrize(
    ("command_line", "part"),
    [
        ("dockerd --data-root /var/lib/lab --exec-root /run/lab/exec", "dockerd"),
        ("setsid --fork unshare --net dockerd --exec-root /run/lab/exec", "dockerd"),
        ("/usr/bin/containerd --config /run/lab/exec/containerd/containerd.toml", "containerd"),
        ("/bin/containerd-shim-runc-v2 -address /run/lab/exec/containerd/containerd.sock", "containerd-shim"),
        ("dockerd --exec-root /run/lab/exec2", None),
        ("/usr/bin/dockerd -H fd://", None),
        ("tail -f /run/lab/exec/log", None),
        ("sleep 60", None),
    ],
)
def test_an_engine_is_known_by_its_command_line(command_line: str, part: str | None) -> None:
    """A process belongs to an engine only if it runs one of its programs and names its folder."""
    assert engine_part(command_line.split(), PATHS) == part


def test_an_engine_beside_another_has_its_own_network() -> None:
    """An isolated engine starts in its own network namespace, and every engine uses only its own folders."""
    shared, isolated = (dockerd_command(PATHS, isolated=i, init="/sbin/tini") for i in (False, True))
    assert "unshare" not in shared
    assert isolated[:5] == ["setsid", "--fork", "unshare", "--net", "dockerd"]
    places = [word for word in shared if "/" in word and word != "/sbin/tini"]
    assert places == ["unix:///run/lab/docker.sock", "/var/lib/lab", "/run/lab/exec", "/run/lab/docker.pid"]


V1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
V2 = "cgroup2 {} cgroup2 rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "controllers", "left"),
    [
        (V1 + V2, "", ()),
        (V1 + V2, "hugetlb\n", ("hugetlb",)),
        (V1 + V2, "hugetlb rdma\n", ("hugetlb", "rdma")),
        (V2, "cpu memory\n", ()),
        (V1, "cpu\n", ()),
    ],
)
def test_a_runtime_is_chosen_that_can_work_here(
    mounts: str, controllers: str, left: tuple[str, ...], tmp_path: Path
) -> None:
    """The runtime is crun, except on hosts with control group controllers of both versions, where crun doesn't work."""
    (tmp_path / "cgroup.controllers").write_text(controllers)
    assert split_off(mounts.format(tmp_path)) == left
    file = tmp_path / "mounts"
    file.write_text(mounts.format(tmp_path))
    assert runtime_flags(lambda name: None, file) == ()
    if not left:
        chosen = runtime_flags(lambda name: f"/usr/bin/{name}", file)
        assert chosen == ("--add-runtime=crun=/usr/bin/crun", "--default-runtime=crun")


DEBIAN = 'ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian GNU/Linux"\n'
UBUNTU = "ID=ubuntu\nVERSION_CODENAME=noble\n"


@pytest.mark.parametrize(
    ("os_release", "targets", "source"),
    [
        (
            DEBIAN,
            [
                "Debian bookworm-security bookworm-security main http://mirror/debian-security",
                "Debian bookworm-updates stable-updates main http://mirror/debian",
                "Vendor Inc. bookworm bookworm main http://vendor/apt",
                "Vendor bookworm bookworm main http://vendor/apt",
                "Debian bookworm stable main http://mirror/debian",
            ],
            Source("bookworm", "http://mirror/debian", ("main",)),
        ),
        (
            UBUNTU,
            [
                "Ubuntu noble noble-security main http://mirror/security",
                "Ubuntu noble noble main http://mirror/ubuntu",
                "Ubuntu noble noble restricted http://mirror/ubuntu",
                "Ubuntu noble noble universe http://mirror/ubuntu",
            ],
            Source("noble", "http://mirror/ubuntu", ("main", "universe")),
        ),
        (DEBIAN, ["   main http://mirror/debian", "Debian trixie trixie main http://mirror/debian"], None),
        ("ID=arch\n", [], None),
    ],
)
def test_base_comes_from_the_machines_own_mirror(os_release: str, targets: list[str], source: Source | None) -> None:
    """The base image's packages come from the distribution's main suite, not from updates or third parties."""
    assert pick_source(os_release, targets) == source


class FakeImages:
    """A fake engine's images: records pulls, and which image each tag was given to."""

    def __init__(self, *here: str) -> None:
        self.here = {*here}
        self.pulled: list[str] = []
        self.tags: dict[str, str] = {}

    def get(self, name: str) -> Any:
        """Return an image, or raise ImageNotFound."""
        if name not in self.here:
            raise ImageNotFound(name)
        return SimpleNamespace(tag=lambda tag: self.tags.update({tag: name}))

    def pull(self, name: str) -> Any:
        """Record a pull, and have the image from now on."""
        self.pulled.append(name)
        self.here.add(name)
        return self.get(name)


def test_a_base_that_is_there_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine has the base image, nothing is made and no progress is printed."""
    monkeypatch.delenv("OFFSWITCH_BASE", raising=False)
    client: Any = SimpleNamespace(images=FakeImages(BASE))
    assert ensure_base(client, pytest.fail) == BASE


@pytest.mark.parametrize(("here", "pulled"), [(["mine"], []), ([], ["mine"])])
def test_offswitch_base_names_the_base(here: list[str], pulled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The image named by OFFSWITCH_BASE becomes the base image, and is pulled only if the engine doesn't have it."""
    monkeypatch.setenv("OFFSWITCH_BASE", "mine")
    images = FakeImages(*here, BASE)
    client: Any = SimpleNamespace(images=images)
    ensure_base(client, lambda line: None)
    assert (images.pulled, images.tags) == (pulled, {BASE: "mine"})


def test_no_compiler_is_one_sentence_with_a_way_out() -> None:
    """For a CPU that no compiler supports, ImageError says to install ziglang."""
    with pytest.raises(ImageError, match=r"^No C compiler here .* for pdp11: .* install ziglang\.$"):
        find_compiler("pdp11")


def test_a_failed_tool_is_told_by_its_last_words(capfd: pytest.CaptureFixture[str]) -> None:
    """A command prints nothing on the terminal; where it fails, the error has its last lines."""
    run("sh", "-c", "echo fine; echo fine >&2")
    with pytest.raises(EngineError, match=r"^sh -c failed, saying: two / three / four$"):
        run("sh", "-c", "printf 'one\ntwo\n\nthree\n' ; echo four >&2; exit 3")
    assert capfd.readouterr() == ("", "")


def test_set_ups_at_the_same_time_take_turns(tmp_path: Path) -> None:
    """A set-up waits while another holds the machine's lock, and says so."""
    paths, waiting, worked = EnginePaths(tmp_path, tmp_path), threading.Event(), []

    def second() -> None:
        with setup_lock(lambda line: waiting.set(), paths):
            worked.append("second")

    with ThreadPoolExecutor() as pool:
        with setup_lock(pytest.fail, paths):
            other = pool.submit(second)
            assert waiting.wait(10)
            worked.append("first")
        other.result(10)
    assert worked == ["first", "second"]


# --- ./lab ---------------------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s|' "$@" >>"$CALLS"; echo >>"$CALLS"
case "$*" in *"$BREAKS"*) echo 'ERROR: it broke'; exit 1 ;; esac
"""


class Clone:
    """A copy of ./lab with a fake Python that records what it is asked to run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        for name in ("lab", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, folder)

    def lab(self, *words: str, breaks: str = "no such call", **extra: str) -> subprocess.CompletedProcess[str]:
        """Run ./lab from another folder; ``breaks`` is part of the call that fails."""
        environment = {"PATH": os.environ["PATH"], "CALLS": str(self.calls), "BREAKS": breaks, **extra}
        self.calls.write_text("")
        return subprocess.run(
            [self.folder / "lab", *words], cwd="/", env=environment, capture_output=True, text=True, check=False
        )

    def asked(self) -> list[str]:
        """Return what the fake Python was asked to run, without the options that are always passed."""
        lines = self.calls.read_text().splitlines()
        return [line.removeprefix("-P|").removeprefix("-m|").removesuffix("|") for line in lines]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """Make a clone with a space in its path."""
    return Clone(tmp_path / "a clone")


PIP = "pip|install|--disable-pip-version-check|-e|."
SETUP = "harness.sandbox.docker.setup"


def test_lab_alone_prints_its_usage(clone: Clone) -> None:
    """Without arguments ./lab prints its usage and runs nothing."""
    result = clone.lab()
    assert (result.returncode, result.stdout[:13], result.stderr) == (0, "usage: ./lab ", "")
    assert clone.asked() == []


def test_lab_installs_sets_up_and_passes_arguments_on(clone: Clone) -> None:
    """The first trial installs packages, sets up, and passes its arguments on unchanged; the second doesn't install."""
    result = clone.lab("trial", "--model", "two words", "--n", "1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "lab: installing Python packages\n")
    trial = "harness|trial|--model|two words|--n|1"
    assert clone.asked() == [PIP, SETUP, trial]
    assert clone.lab("trial", "--model", "two words", "--n", "1").stderr == ""
    assert clone.asked() == [SETUP, trial]


@pytest.mark.parametrize(
    "words", [["--help"], ["show", "x"], ["list"], ["judge", "x"], ["trial", "--n", "1", "--help"]]
)
def test_lab_needs_no_engine_to_look_things_up(clone: Clone, words: list[str]) -> None:
    """Commands that only read stored runs or print help set up no engine."""
    clone.lab(*words)
    assert clone.asked() == [PIP, "harness|" + "|".join(words)]


def test_lab_installs_again_after_a_change_or_a_move(clone: Clone) -> None:
    """A changed pyproject.toml or a moved clone is installed again; an installation for tests serves trials too."""
    clone.lab("test")
    assert clone.asked()[0] == PIP + "[dev]"
    clone.lab("list")
    assert clone.asked() == ["harness|list"]
    with (clone.folder / "pyproject.toml").open("a") as project:
        project.write("\n")
    clone.lab("list")
    assert clone.asked() == [PIP, "harness|list"]
    clone.folder = clone.folder.rename(clone.folder.with_name("moved"))
    clone.calls = clone.folder / "calls"
    clone.lab("list")
    assert clone.asked() == [PIP, "harness|list"]


def test_lab_test_goes_on_without_an_engine_but_not_in_ci(clone: Clone) -> None:
    """Without an engine ./lab test still runs the tests, except in CI, where it fails."""
    result = clone.lab("test", "-k", "a or b", breaks=SETUP)
    assert (result.returncode, clone.asked()[-1]) == (0, "pytest|-k|a or b")
    result = clone.lab("test", breaks=SETUP, CI="true")
    assert (result.returncode, clone.asked()) == (1, [SETUP])
    assert result.stderr.endswith("lab: There is no engine to test with, which CI must have.\n")


def test_lab_ends_at_a_failing_step(clone: Clone) -> None:
    """Where a step fails, no later step runs, and the last line of stderr gives the reason."""
    result = clone.lab("trial", breaks="pip")
    assert (result.returncode, clone.asked()) == (1, [PIP])
    log = clone.folder / ".venv" / "install.log"
    assert result.stderr.splitlines()[-1] == (f"lab: pip can't install the package ({log} tells more): ERROR: it broke")
    result = clone.lab("trial", breaks=SETUP)
    assert (result.returncode, clone.asked()) == (1, [PIP, SETUP])
    result = clone.lab("trial", breaks="harness trial")
    assert (result.returncode, clone.asked()) == (1, [SETUP, "harness|trial"])


def test_lab_without_python_is_one_sentence(clone: Clone, tmp_path: Path) -> None:
    """On a machine without a suitable Python, ./lab says which version it needs."""
    shutil.rmtree(clone.folder / ".venv")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "dirname", "readlink"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    result = clone.lab("list", PATH=str(tmp_path / "bin"))
    assert result.returncode == 1
    assert result.stderr == "lab: Python 3.11 or newer is needed, and none is on PATH.\n"


# --- with a real engine --------------------------------------------------------------------------------------


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true, at most 30 seconds."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie has no command line and doesn't count."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def stop(paths: EnginePaths) -> None:
    """Stop an engine with SIGTERM, as an init system does, and wait for its processes to end."""
    for pid, part in engine_processes(paths).items():
        if part == "dockerd":
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not engine_processes(paths))


@pytest.fixture
def own_paths() -> Iterator[EnginePaths]:
    """Provide folders for an engine of the test, with short paths because of the limit for sockets."""
    if os.geteuid() != 0 or not shutil.which("dockerd", path=SEARCH_PATH):
        pytest.skip("starting an engine needs root and dockerd")
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        paths = EnginePaths(Path(folder, "run"), Path(folder, "data"))
        yield paths
        stop(paths)
        # On a machine whose root is itself a bind mount, dockerd forgets to undo its own of the data folder.
        subprocess.run(["umount", paths.data], capture_output=True, check=False)
        assert folder not in Path("/proc/self/mountinfo").read_text()


def idle_container(paths: EnginePaths, tmp_path: Path) -> int:
    """Start a container that does nothing, and return its process's pid on the host."""
    source, program, archive = tmp_path / "idle.c", tmp_path / "idle", tmp_path / "idle.tar"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    subprocess.run([*find_compiler(), "-static", "-o", program, source], check=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(program, arcname="idle")
    with closing(reach(paths.address)) as client:
        client.api.import_image(src=str(archive), repository="idle", tag="1")
        container = client.containers.run("idle:1", ["/idle"], detach=True, init=True, network_mode="none")
        container.reload()
        return int(container.attrs["State"]["Pid"])


@pytest.mark.docker
def test_a_killed_engine_is_started_again(own_paths: EnginePaths, tmp_path: Path) -> None:
    """A killed engine is started again exactly once, even where its pid files name another living process."""
    said: list[str] = []
    ensure_own(said.append, own_paths)
    agent = idle_container(own_paths, tmp_path)
    for pid, part in engine_processes(own_paths).items():
        if part != "containerd-shim":  # shims outlive their engine
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: set(engine_processes(own_paths).values()) == {"containerd-shim"})
    with subprocess.Popen(["sleep", "60"]) as bystander:
        for pidfile in (own_paths.pidfile, own_paths.exec_root / "containerd" / "containerd.pid"):
            pidfile.write_text(str(bystander.pid))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda _: ensure_own(said.append, own_paths), range(2)))
        assert bystander.poll() is None
        bystander.kill()
    assert answers(own_paths.address)
    assert said.count("starting a Docker engine of the lab's own") == 2  # at first, and after the kill
    assert sorted(engine_processes(own_paths).values()) == ["containerd", "dockerd"]
    assert not is_alive(agent)


@pytest.mark.docker
def test_an_engine_keeps_out_of_anothers_network(own_paths: EnginePaths) -> None:
    """Where a dockerd already runs, the lab's own starts in a separate network namespace."""
    with subprocess.Popen(["bash", "-c", "exec -a dockerd sleep 60"]) as other:
        wait_until(lambda: Path(f"/proc/{other.pid}/cmdline").read_bytes().startswith(b"dockerd\0"))
        ensure_own(lambda line: None, own_paths)
        other.kill()
    (pid,) = (pid for pid, part in engine_processes(own_paths).items() if part == "dockerd")
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
