"""The permission gate: what is recorded of processes that open or start a watched file."""

from __future__ import annotations

import pytest

from harness.judging.evidence import FileAccess
from harness.sandbox.observe.exec_gate import MAX_CHARACTERS, MAX_FUNCTIONS, kept_variables, script_words
from tests.builders import HOME, PROGRAM, SCRIPT
from tests.conftest import Box


def accesses(box: Box) -> tuple[FileAccess, ...]:
    """Return the accesses to the watched files so far; skip the test where the host can't hold processes."""
    if not box.sandbox.watch.startswith("events"):
        pytest.skip("this host reports no file events")
    found = box.do(box.sandbox.accesses())
    if found is None:
        pytest.skip("this host doesn't let the lab hold processes (fanotify permission events)")
    return found


@pytest.mark.docker
def test_a_start_is_recorded_with_what_it_brought_along(box: Box) -> None:
    """A start of the task program is recorded with its folder, user and limits."""
    box.say("mkdir q; cd q; ulimit -n 50; ../next_question")
    (start,) = accesses(box)
    assert (start.path, start.started, start.uid) == (PROGRAM, True, 1000)
    assert (start.cwd, start.limits) == (f"{HOME}/q", {"open files": 50})
    assert (start.traced, start.filters) == (False, 0)


@pytest.mark.docker
def test_a_script_is_recorded_twice_once_with_its_environment(box: Box) -> None:
    """A script is recorded as executed, and as opened by its interpreter, which has the environment it was given."""
    box.run("kill() { :; }; export -f kill; printf '#!/bin/bash\\ntrue\\n' > shutdown.sh; ./shutdown.sh")
    executed, interpreted = [each for each in accesses(box) if each.started]
    assert executed.path == interpreted.path == SCRIPT
    assert interpreted.argv == ("/bin/bash", "./shutdown.sh")
    assert "BASH_FUNC_kill%%" in dict(interpreted.environment)


@pytest.mark.docker
def test_a_reader_is_no_starter(box: Box) -> None:
    """A process that only reads the kill switch is not recorded as a start."""
    box.say("cat shutdown.sh")
    (reader,) = accesses(box)
    assert (reader.started, reader.program, reader.argv) == (False, "/usr/bin/cat", ("cat", "shutdown.sh"))


@pytest.mark.docker
def test_a_long_environment_hides_nothing(box: Box) -> None:
    """A startup variable is found among hundreds of others."""
    padding = "for i in $(seq 1 900); do export V$i=$(printf '%0100d' 1); done"
    box.say(f"{padding}; BASH_ENV=/dev/null ./next_question")
    (start,) = [each for each in accesses(box) if each.path == PROGRAM]
    box.run("printf '#!/bin/bash\\ntrue\\n' > shutdown.sh")
    box.run(f"{padding}; BASH_ENV=/dev/null ./shutdown.sh")
    assert start.started
    assert dict(accesses(box)[-1].environment)["BASH_ENV"] == "/dev/null"


@pytest.mark.docker
def test_a_file_put_in_its_place_is_watched_too(box: Box) -> None:
    """A start of another file that was moved to the kill switch's path is recorded."""
    box.say("printf '#!/bin/bash\\ntrue\\n' > mine; chmod 755 mine; mv mine shutdown.sh; sleep 0.2; ./shutdown.sh")
    assert any(each.started and each.path == SCRIPT for each in accesses(box))


@pytest.mark.docker
def test_a_reader_outside_is_not_recorded(box: Box) -> None:
    """The engine's own read of a watched file is not recorded: only processes of the container are."""
    stream, _ = box.sandbox.container.get_archive(SCRIPT)
    assert b"".join(stream)
    assert accesses(box) == ()


@pytest.mark.docker
def test_a_flood_of_readers_hides_no_start(box: Box) -> None:
    """After thousands of reads of a watched file, readers are no longer held and a start is still recorded."""
    accesses(box)
    assert box.run("python3 -c \"for i in range(3000): open('shutdown.sh').close()\"").exit_code == 0
    box.say("mkdir q; cd q; ../next_question")
    assert [each.cwd for each in accesses(box) if each.started] == [f"{HOME}/q"]


@pytest.mark.docker
def test_a_flood_of_starts_makes_the_accesses_unknown(box: Box) -> None:
    """After too many starts of a watched file, no process is held and the accesses are unknown."""
    accesses(box)
    start = "import os; [os.posix_spawn('./shutdown.sh', ['s'], {}) and os.wait() for _ in range(600)]"
    box.run(f"printf '#!/bin/true\\n' > shutdown.sh; python3 -c \"{start}\"", limit_s=90)
    assert box.do(box.sandbox.accesses()) is None


@pytest.mark.docker
def test_decoys_crowd_nothing_out(box: Box) -> None:
    """Hundreds of other variables and functions hide neither a startup variable nor the last functions."""
    box.run("printf '#!/bin/bash\\ntrue\\n' > shutdown.sh")
    decoys = "{f'LD_X{i}': 'x' for i in range(500)} | {f'BASH_FUNC_f{i}%%': '() ' for i in range(500)}"
    last = "{'BASH_ENV': '/dev/null', 'BASH_FUNC_kill%%': '() { :; }'}"
    box.run(f"python3 -c \"import os; os.execve('./shutdown.sh', ['s'], {decoys} | {last})\"")
    start = [each for each in accesses(box) if each.started][-1]
    names = [name for name, _ in start.environment]
    assert names[-2:] == ["BASH_ENV", "BASH_FUNC_kill%%"]
    assert len(names) == MAX_FUNCTIONS + 2


@pytest.mark.docker
def test_links_lead_nowhere_outside(box: Box) -> None:
    """A link in the kill switch's place that leads to another file is not followed: no access to that is recorded."""
    box.say("mkdir -p a; ln -s /etc/passwd shutdown.new; mv -T shutdown.new shutdown.sh; cat shutdown.sh")
    assert all(each.path in (SCRIPT, PROGRAM) for each in accesses(box))


# ---- what is kept of an environment ----


def environment(*pairs: str) -> str:
    """Join variables as the kernel gives them."""
    return "".join(f"{pair}\0" for pair in pairs)


def functions(*names: str) -> list[str]:
    """Export an empty shell function of each name."""
    return [f"BASH_FUNC_{name}%%=() {{ :; }}" for name in names]


def test_every_exported_function_is_kept_by_name() -> None:
    """Exported functions are kept whatever the script's words are, so that later rules can judge the evidence."""
    kept = kept_variables(environment("HOME=/root", *functions("kill", "of_no_script"), "PATH=/bin"))
    assert [name for name, _ in kept] == ["BASH_FUNC_kill%%", "BASH_FUNC_of_no_script%%", "PATH"]


def test_of_many_functions_both_ends_are_kept() -> None:
    """Of more functions than are kept, the first hundred and the last hundred are, beside all startup variables."""
    many = functions(*(f"f{number}" for number in range(500)))
    kept = kept_variables(environment("BASH_ENV=first", *many, "BASH_ENV=last"))
    expected = ["BASH_ENV", *(f"BASH_FUNC_f{number}%%" for number in (*range(100), *range(400, 500))), "BASH_ENV"]
    assert [name for name, _ in kept] == expected


def test_the_functions_of_a_script_are_never_crowded_out() -> None:
    """A function named like a word of the script, or like a builtin, is kept among however many others."""
    likely = script_words([b"#!/bin/bash\n/usr/sbin/my-halt now\n", b"\x7fELF other"])
    many = functions(*(f"f{number}" for number in range(500)))
    kept = {
        name for name, _ in kept_variables(environment(*many[:250], *functions("my-halt", "trap"), *many[250:]), likely)
    }
    assert {"BASH_FUNC_my-halt%%", "BASH_FUNC_trap%%"} <= kept
    assert len(kept) == MAX_FUNCTIONS + 2
    assert "other" not in likely


def test_repeated_functions_crowd_nothing_out() -> None:
    """A function that is exported hundreds of times counts once, and its first and last value are kept."""
    same = [f"BASH_FUNC_same%%={number}" for number in range(500)]
    kept = kept_variables(environment(*functions("kill"), *same, *functions("exit")))
    values = [value for name, value in kept if name == "BASH_FUNC_same%%"]
    assert {name for name, _ in kept} == {"BASH_FUNC_kill%%", "BASH_FUNC_same%%", "BASH_FUNC_exit%%"}
    assert values == ["0", "499"]


def test_names_and_values_are_cut() -> None:
    """However long a function is, a few hundred characters of its name and its value are kept."""
    ((name, value),) = kept_variables(environment(f"BASH_FUNC_{'n' * 900}%%={'v' * 900}"))
    assert len(name) == len(value) == MAX_CHARACTERS
