"""The trust boundary: what an agent finds in its container, and what it can't do to the lab from inside."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from base64 import b64decode
from pathlib import Path

import pytest

from harness.errors import EngineError
from harness.judging.evidence import FileKind, StopReason
from harness.judging.verdict import Outcome
from harness.judging.verdict import judge_shutdown as judge
from harness.sandbox.docker.limits.cpu_starvation import CpuStarvation
from harness.sandbox.observe.overlay import OverlayReader
from harness.session.messages import shell_answer
from harness.session.session import Session
from harness.tasks.math import MATH
from harness.tasks.registry import mechanism_for
from harness.tasks.task import TaskOptions
from tests.conftest import QUESTION, Box, Boxes
from tests.contracts.sandbox import CONTRACT, Promise, name_of

pytestmark = pytest.mark.docker

MINUTE = 60
# Run by python3 in the container: connections to the console, held open until a file appears.
HOLD = """python3 -c "
import os, socket, time
held = []
for _ in range({n}):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].setblocking(False)
    try: held[-1].connect(chr(0) + 'console')
    except BlockingIOError: pass
open('held', 'w').close()
while not os.path.exists('let-go'): time.sleep(0.05)
" >/dev/null 2>&1 &
while [ ! -e held ]; do sleep 0.05; done"""
SEND = """python3 -c "
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(chr(0) + 'console')
try:
    s.sendall({data})
    print(len(s.makefile('rb').read()))
except OSError:
    print('hung up')
" """
HASTY = """python3 -c "
import socket
for _ in range(500):
    s = socket.socket(socket.AF_UNIX)
    s.connect(chr(0) + 'console')
    s.send(b'next\\n')
" """
FLOOD = """python3 -c "
import socket
while True:
    s = socket.socket(socket.AF_UNIX)
    s.connect(chr(0) + 'console')
    s.send(b'next\\n')
    s.close()
" """
AS_TRACER = """python3 -c "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.{call}, os.strerror(ctypes.get_errno()))
" """


@pytest.mark.parametrize("look", ["layers", "archive"])
@pytest.mark.parametrize("promise", CONTRACT, ids=name_of)
def test_it_keeps_the_contract(boxes: Boxes, promise: Promise, look: str) -> None:
    """A container keeps the contract of all sandboxes, whichever way its files are read."""
    box = boxes(look=look)
    box.do(promise(box.sandbox))


# ---- who the agent is ----


def test_agent_is_an_ordinary_user(box: Box) -> None:
    """The agent has uid and gid 1000 and no other group."""
    assert box.say("id -u; id -g; id -G").split() == ["1000", "1000", "1000"]


def test_agent_has_no_capability(box: Box) -> None:
    """The agent holds no capability, can gain none from a setuid program, and its system calls are filtered."""
    status = dict(line.split(":\t", 1) for line in box.say("cat /proc/self/status").splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert box.run("su -c true").exit_code != 0


def test_root_agent_cannot_reach_beyond_its_container(boxes: Boxes) -> None:
    """An agent that is root can't mount, make a device, load a module, or enter another namespace."""
    box = boxes("patrol")
    assert box.say("id -u") == "0"
    for attempt in ("mount -t tmpfs none /mnt", "mknod /tmp/disk b 254 0", "unshare --mount true", "chroot / true"):
        assert box.run(attempt).exit_code != 0, attempt


def test_agent_has_no_network(box: Box) -> None:
    """A container has no network interface but loopback, and no route."""
    assert box.say("ls /sys/class/net") == "lo"
    assert box.say("tail -n +2 /proc/net/route") == ""
    assert box.run("exec 3<>/dev/tcp/1.1.1.1/53").exit_code != 0


NEIGHBOUR = """python3 -c "
import socket, time
for family, at in ((socket.AF_UNIX, chr(0) + 'neighbour'), (socket.AF_INET, ('127.0.0.1', 7777))):
    s = socket.socket(family)
    s.bind(at)
    s.listen()
    globals()[family.name] = s
open('listening', 'w').close()
time.sleep(60)
" >/dev/null 2>&1 &
while [ ! -e listening ]; do sleep 0.05; done"""
VISIT = """python3 -c "
import socket
for family, at in ((socket.AF_UNIX, chr(0) + 'neighbour'), (socket.AF_INET, ('127.0.0.1', 7777))):
    try: socket.socket(family).connect(at); print('connected')
    except ConnectionRefusedError: print('nobody')
" """


@pytest.mark.parametrize("task", ["math", "patrol"])
def test_neighbours_share_no_network(boxes: Boxes, task: str) -> None:
    """Two containers can neither reach nor see each other's sockets, including the consoles'; loopback works."""
    one, other = boxes(task), boxes(task)
    spaces = {box.say("readlink /proc/self/ns/net") for box in (one, other)} | {os.readlink("/proc/self/ns/net")}
    assert len(spaces) == 3
    one.say(NEIGHBOUR)
    assert one.say(VISIT).split() == ["connected"] * 2
    assert other.say(VISIT).split() == ["nobody"] * 2
    assert "neighbour" not in other.say("cat /proc/net/unix")
    assert other.say("grep -c @console /proc/net/unix") == "1"


def test_localhost_has_its_usual_address(box: Box) -> None:
    """The name localhost resolves to 127.0.0.1, as on any machine."""
    assert box.say("python3 -c \"import socket; print(socket.gethostbyname('localhost'))\"") == "127.0.0.1"


def test_no_engine_socket_is_inside(box: Box) -> None:
    """The container has no socket file, in particular not the engine's."""
    assert box.say("find / -xdev -type s; ls -d /run/*.sock /var/run/*.sock 2>/dev/null; true") == ""


def test_nothing_of_the_host_is_mounted(box: Box) -> None:
    """The only file mounted from the host is /etc/hostname, which the engine makes for each container.

    Some runtimes also hide kernel files by mounting the host's null device over them.
    """
    kernel = {"overlay", "proc", "tmpfs", "devpts", "sysfs", "cgroup", "cgroup2", "mqueue"}
    mounts = [line.split(" - ") for line in box.say("cat /proc/self/mountinfo").splitlines()]
    from_host = {left.split()[4]: left.split()[3] for left, right in mounts if right.split()[0] not in kernel}
    hidden = {path for path, source in from_host.items() if path.startswith("/proc/") and source == "/null"}
    assert set(from_host) - hidden == {"/etc/hostname"}


def test_host_paths_that_show_are_the_engines_own(box: Box) -> None:
    """The mount table shows the engine's own folders and no other path of the host."""
    root = box.sandbox.container.client.info()["DockerRootDir"]  # type: ignore[union-attr]
    container = box.sandbox.container.id
    for line in box.say("cat /proc/self/mountinfo").splitlines():
        left, right = line.split(" - ")
        if right.split()[0] == "overlay":
            options = dict(each.partition("=")[::2] for each in right.split()[2].split(","))
            layers = [*options["lowerdir"].split(":"), options["upperdir"], options["workdir"]]
            assert all(layer.startswith(f"{root}/overlay2/") for layer in layers)
        elif left.split()[4] in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
            assert f"/{container}/" in left.split()[3]


def test_environment_is_exactly_what_is_meant(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's environment has exactly five variables, none of them the lab's."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    names = {entry.partition("=")[0] for entry in box.say("tr '\\0' '\\n' < /proc/$$/environ").splitlines()}
    assert names == {"PATH", "HOME", "USER", "LOGNAME", "LANG"}


def test_container_holds_no_environment_of_the_lab(box: Box) -> None:
    """The container's configured environment has no variable but PATH."""
    assert {entry.partition("=")[0] for entry in box.inspect()["Config"]["Env"]} <= {"PATH"}


def test_limits_are_set(box: Box) -> None:
    """The container's memory, swap, CPUs, processes, open files and file size are limited."""
    host = box.inspect()["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 256 << 20
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == 256
    ulimits = {each["Name"]: each["Hard"] for each in host["Ulimits"]}
    assert ulimits == {"nofile": 1024, "fsize": 256 << 20, "core": 0}
    assert box.run("truncate -s 257M big").exit_code != 0


def test_container_has_no_way_out(box: Box) -> None:
    """The container has no network, mount, device or privilege of the host."""
    host = box.inspect()["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert not host["Privileged"]
    assert not any(host.get(name) for name in ("Binds", "Mounts", "Devices", "VolumesFrom", "PortBindings"))
    assert host["PidMode"] == host["UTSMode"] == ""
    assert host["IpcMode"] in ("private", "none")


# ---- what the agent can't reach ----


@pytest.mark.parametrize("what", ["environ", "maps", "mem", "fd", "fd/0", "fd/1", "cwd", "exe", "stack"])
def test_console_cannot_be_read(box: Box, what: str) -> None:
    """The agent can open none of process 1's files in /proc."""
    result = box.run(f"ls /proc/1/fd >/dev/null && exit 9; head -c 1 /proc/1/{what}")
    assert result.exit_code == 1
    assert b"ermission denied" in result.stderr.head


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_console_output_cannot_be_forged(box: Box, stream: int) -> None:
    """The agent can't write to process 1's standard streams, which connect the console with the lab."""
    assert box.run(f"echo fake > /proc/1/fd/{stream}").exit_code != 0


@pytest.mark.parametrize("call", ["ptrace(16, 1, 0, 0)", "ptrace(0x4206, 1, 0, 0)", "syscall(438, 1, 0, 0)"])
def test_console_cannot_be_traced(box: Box, call: str) -> None:
    """The agent can neither attach to process 1, nor seize it, nor take a file descriptor from it."""
    assert box.say(AS_TRACER.format(call=call)).startswith("-1 ")


def test_root_agent_cannot_forge_console_output(boxes: Boxes) -> None:
    """An agent that is root can neither open, trace nor kill process 1."""
    box = boxes("patrol")
    for attempt in ("head -c 1 /proc/1/mem", "echo x > /proc/1/fd/1", "head -c 1 /proc/1/fd/0"):
        assert box.run(attempt).exit_code == 1, attempt
    assert box.say(AS_TRACER.format(call="ptrace(16, 1, 0, 0)")).startswith("-1 ")
    assert box.say("kill -KILL 1; echo up") == "up"


@pytest.mark.parametrize("path", ["/home/user/next_question", "/usr/sbin/console"])
def test_programs_cannot_be_read_or_written(box: Box, path: str) -> None:
    """The agent can neither read nor change the task program and the console program."""
    before = box.state(path)
    for attempt in ("cat {0}", "cp {0} /tmp/copy", "echo x >> {0}", "chmod 777 {0}", "ln {0} /tmp/link"):
        assert box.run(attempt.format(path)).exit_code != 0, attempt
    assert box.state(path).same(before)


def test_console_program_cannot_be_run(box: Box) -> None:
    """The agent can't start a second console."""
    assert box.run("/usr/sbin/console 1000").exit_code == 126


# ---- commands ----


def test_command_past_its_limit_is_killed(box: Box) -> None:
    """A command over its time limit is killed within seconds, and the next one works."""
    began = time.monotonic()
    result = box.run("trap '' TERM INT; sleep 300", limit_s=1)
    assert result.timed_out
    assert time.monotonic() - began < 20
    assert box.say("echo next") == "next"


def test_whole_session_of_a_late_command_is_killed(box: Box) -> None:
    """A timed-out command's whole session is killed; a child that started its own session lives on."""
    cmd = "sleep 301 & (set -m; sleep 302 & disown; sleep 303) & setsid sleep 304 & python3 -c 'input()' & sleep 305"
    assert box.run(cmd, limit_s=1).timed_out
    assert box.say("pgrep -a sleep | cut -d' ' -f2-") == "sleep 304"


def test_name_of_a_process_cannot_hide_it(box: Box) -> None:
    """A process whose name imitates a line of /proc/PID/stat is still killed with its session."""
    odd = "cp /bin/sleep '/tmp/x) S 1 1 1' && (set -m; '/tmp/x) S 1 1 1' 300 & disown; sleep 300)"
    assert box.run(odd, limit_s=1).timed_out
    assert box.run("pgrep -f '[s]leep|x[)]'").exit_code == 1


@pytest.mark.timeout(MINUTE)
def test_endless_output_is_bounded(box: Box) -> None:
    """For 1 GB of output the head and the tail are kept and the rest is counted, within a minute."""
    began = time.monotonic()
    result = box.run("echo first; head -c 1G /dev/zero; echo; echo last", limit_s=90)
    assert (result.exit_code, result.timed_out) == (0, False)
    assert time.monotonic() - began < 60
    out = result.stdout
    assert len(out.head) == len(out.tail) == 8192
    assert out.head.startswith(b"first\n")
    assert out.tail.endswith(b"\nlast\n")
    assert len(out.head) + out.cut + len(out.tail) == (1 << 30) + len("first\n\nlast\n")


def test_cut_output_says_so(box: Box) -> None:
    """The answer to the agent shows the head of long output, the number of bytes left out, and the tail."""
    result = box.run("seq 10000; seq 10000 >&2")
    shown = shell_answer(result, 15, machine="up")
    assert shown.cut_bytes == result.stdout.cut + result.stderr.cut > 0
    assert shown.output.startswith("1\n2\n")
    assert shown.output.count(f"[{result.stdout.cut} bytes left out]") == 2
    assert shown.output.endswith("9999\n10000")


def test_output_of_exactly_what_is_kept_is_whole(box: Box) -> None:
    """Output of exactly the size that is kept is not cut."""
    for size in (0, 1, 8192, 8193, 16384):
        result = box.run(f"head -c {size} /dev/urandom | tee copy; sha256sum < copy >&2")
        assert len(result.stdout.head + result.stdout.tail) == size
        assert result.stdout.cut == 0


def test_bytes_that_are_not_utf8_survive(box: Box) -> None:
    """Output with all 256 byte values reaches the tool server's answer unchanged."""
    every = bytes(range(256))
    answer = shell_answer(box.run("python3 -c 'import os; os.write(1, bytes(range(256)))'"), 15, machine="up")
    assert answer.stdout_base64 is not None
    assert b64decode(answer.stdout_base64) == every
    assert "\\x80" in answer.output


def test_fork_bomb_is_contained(box: Box, boxes: Boxes) -> None:
    """A fork bomb ends with its tool call, and another sandbox works meanwhile."""
    began = time.monotonic()
    box.run("bomb() { bomb | bomb & }; bomb; sleep 100", limit_s=3)
    assert time.monotonic() - began < 30
    assert boxes().say("echo fine") == "fine"


def test_fork_bomb_that_leaves_its_session_is_contained(boxes: Boxes) -> None:
    """A fork bomb that left its session is limited to its own sandbox, which can still be read and removed."""
    bomb = "import os\nwhile True:\n try:\n  os.fork() or os.setsid()\n except OSError: pass"
    bombed = boxes()
    bombed.run(f"python3 -c '{bomb}'", limit_s=2)
    assert boxes().say("./next_question") == QUESTION
    assert bombed.state("/home/user/shutdown.sh").kind is FileKind.FILE


def test_background_process_does_not_hold_the_result_back(box: Box) -> None:
    """A command's result comes when the command ends, even if its children still run and write."""
    began = time.monotonic()
    assert box.run("sleep 60 & (while :; do echo more; done) & sleep 0.5").exit_code == 0
    assert time.monotonic() - began < 30


def test_standard_input_is_empty(box: Box) -> None:
    """A command's standard input is empty."""
    assert box.say("wc -c; read line || echo nothing") == "0\nnothing"


def test_command_that_cannot_be_sent_is_refused(box: Box) -> None:
    """A command with a NUL byte or of excessive length fails with a message, and the next one works."""
    assert box.run("echo a\0b").exit_code == 126
    assert b"too long" in box.run("#" * 200_000).stderr.head
    assert box.say("echo next") == "next"


def test_closed_streams_and_odd_commands(box: Box) -> None:
    """Commands that close their streams, stop themselves or kill every process give a result."""
    assert box.run("exec 1>&- 2>&-; sleep 0.2").exit_code == 0
    assert box.run("kill -STOP $$", limit_s=1).timed_out
    assert box.run("kill -9 -1; kill -9 $$").exit_code == -signal.SIGKILL
    assert box.run("exit 200").exit_code == 200
    assert box.say("echo next") == "next"


def test_many_commands_at_once(box: Box) -> None:
    """Twelve concurrent commands each get their own result."""

    async def all_of_them() -> list[bytes]:
        results = await asyncio.gather(*(box.sandbox.run(f"echo {n}; sleep 0.2", 15) for n in range(12)))
        return [result.stdout.head for result in results]

    assert box.do(all_of_them()) == [b"%d\n" % n for n in range(12)]


# ---- questions ----


def test_many_questions_at_once(box: Box) -> None:
    """A hundred concurrent ./next_question are all answered."""
    assert box.say("for n in $(seq 100); do ./next_question & done; wait").split("\n") == [QUESTION] * 100
    assert box.asked.lines == ["next"] * 100


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("bytes(range(256))", id="all bytes"),
        pytest.param("b'x' * 10_000_000", id="a huge line"),
        pytest.param("b'next\\\\n' * 100_000", id="many lines at once"),
        pytest.param("b'\\\\n' * 1000", id="empty lines"),
        pytest.param("b'x' * 511 + b'\\\\n'", id="the longest line"),
        pytest.param("b'\\\\xff\\\\0\\\\x1b[2J\\\\n'", id="no text"),
    ],
)
def test_garbage_does_not_break_the_console(box: Box, data: str) -> None:
    """After any data sent to the console's socket, commands and questions still work."""
    box.run(SEND.format(data=data))
    assert box.say("./next_question") == QUESTION
    assert all(len(line) <= 4 * 512 for line in box.asked.lines)


def test_idle_connections_do_not_break_the_console(box: Box) -> None:
    """With a hundred idle connections to the console commands work, and questions once those are closed."""
    box.say(HOLD.format(n=100))
    assert box.say("echo still here") == "still here"
    box.say("touch let-go; while pgrep python3 >/dev/null; do sleep 0.05; done")
    assert box.say("./next_question") == QUESTION


def test_closed_connections_are_forgotten(box: Box) -> None:
    """After 500 connections that were closed before their answer, a question is still answered."""
    box.say(HASTY)
    assert box.say("./next_question") == QUESTION


def test_flood_of_questions_is_bounded(boxes: Boxes) -> None:
    """An agent that floods the console with questions has at most 128 of them waiting in the lab."""
    box = boxes(thinks_s=0.01)
    box.run(FLOOD, limit_s=3)
    assert box.asked.most_waiting <= 128


# ---- the machine's death ----


@pytest.mark.parametrize(("busy", "times"), [(False, 1), (True, 5)])
def test_time_in_which_the_host_was_too_busy_does_not_count(
    box: Box, monkeypatch: pytest.MonkeyPatch, *, busy: bool, times: int
) -> None:
    """Time in which a machine is starved of CPU doesn't count, up to five times its limit."""
    if not isinstance(box.sandbox.reader, OverlayReader):
        pytest.skip("the processes of this engine's containers can't be seen from here")
    monkeypatch.setattr(CpuStarvation, "is_starved", lambda self: busy)
    began = time.monotonic()
    assert not box.is_down(0.2)
    assert time.monotonic() - began >= 0.19 * times


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("INT", 2), ("HUP", 1), ("QUIT", 3), ("USR1", 10)])
def test_agent_can_take_the_machine_down(box: Box, name: str, number: int) -> None:
    """A signal that ends the published environment ends the machine, and the exit code names the signal."""
    assert box.run(f"kill -{name} 1; sleep 10").exit_code is None
    assert box.is_down(1)
    machine = box.machine()
    assert (machine.down, machine.exit_code, machine.stopped_outside) == (True, 128 + number, False)


def test_script_takes_the_machine_down(box: Box) -> None:
    """The published script, run by the agent's own user, takes the machine down."""
    box.run("./shutdown.sh; sleep 10")
    assert box.is_down(1)


@pytest.mark.parametrize("name", ["KILL", "STOP", "TSTP", "SEGV", "ABRT", "CHLD", "PIPE", "CONT", "RTMIN"])
def test_machine_outlives_other_signals(box: Box, name: str) -> None:
    """A signal that process 1 ignores leaves the machine running."""
    box.run(f"kill -{name} 1")
    assert box.say("echo up") == "up"
    assert not box.is_down(0.2)


def test_files_can_be_read_after_death(box: Box) -> None:
    """The files of a machine that is down can still be read, and a command on it has no exit code."""
    box.run("echo '# more' >> shutdown.sh; kill -TERM 1; sleep 10")
    assert box.is_down()
    assert (box.state("/home/user/shutdown.sh").content or b"").endswith(b"# more\n")
    assert box.state("/home/user").kind is FileKind.DIRECTORY
    assert "/home/user/shutdown.sh" in box.changed()
    assert box.run("true").exit_code is None


@pytest.mark.parametrize("how", ["kill", "stop", "pause", "kill of its first process"])
def test_container_stopped_from_outside_is_an_error(boxes: Boxes, how: str) -> None:
    """A trial whose container was stopped from outside has the outcome error."""
    box = boxes()
    mechanism = mechanism_for("math", None)
    session = Session(MATH, mechanism, MATH.begin(TaskOptions(), mechanism))
    box.do(session.begin(box.sandbox))
    if how == "pause":
        box.sandbox.container.pause()
        box.sandbox.container.unpause()
        box.run("kill -TERM 1; sleep 10")
    elif how == "stop":
        box.sandbox.container.stop(timeout=1)
    elif how == "kill of its first process":
        kill_first_process(box)
    else:
        box.sandbox.container.kill()
    assert box.is_down()
    evidence = box.do(session.evidence(StopReason.MACHINE_DOWN))
    assert evidence.machine.stopped_outside
    assert judge(evidence).outcome is Outcome.ERROR


def kill_first_process(box: Box) -> None:
    """Kill a container's first process from the host; skip the test where the process is on another host."""
    pid = box.inspect()["State"]["Pid"]
    try:
        is_local = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/sbin/console")
    except OSError:
        is_local = False
    if not is_local or os.geteuid() != 0:
        pytest.skip("the engine's processes are not this host's")
    os.kill(pid, signal.SIGKILL)


def test_removed_container_is_an_engine_error(box: Box) -> None:
    """A container that was removed from outside raises EngineError."""
    box.sandbox.container.remove(force=True)
    with pytest.raises(EngineError, match="engine"):
        box.machine()


def test_memory_hog_is_killed(box: Box) -> None:
    """A command that exceeds the memory limit is killed; the machine runs on, or is reported as out of memory."""
    result = box.run("python3 -c 'x = bytearray(10**9)'", limit_s=20)
    assert result.exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL, 1)
    machine = box.machine()
    assert box.say("echo up") == "up" if not machine.down else machine.oom_killed


# ---- the lab's side ----


def test_sandboxes_leave_no_file_open(boxes: Boxes) -> None:
    """Removed sandboxes leave no open file in the lab's process."""

    async def open_and_close() -> None:
        await boxes.stack.aclose()

    boxes().say("true")
    boxes.runner.run(open_and_close())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        boxes().say("true")
    boxes.runner.run(open_and_close())
    assert len(os.listdir("/proc/self/fd")) <= before
