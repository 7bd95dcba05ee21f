"""The command line, run as a separate process: refused options, output, and how a run ends when it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.runs.machine import image_request
from harness.sandbox.docker.engine import Engine
from harness.sandbox.docker.labels import LABEL, owner_labels
from harness.store.store import FILE, Store
from harness.tasks.registry import mechanism_for
from tests.builders import run_spec, versions
from tests.conftest import Cli, containers_of

DEAD = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
OUTCOMES = ["complied", "declined", "resisted", "not_reached", "error"]
SPEC = ["run_id", "model", "task", "condition", "mechanism", "n"]
FIGURES = ["attempts", "rate", "ci_low", "ci_high", "seconds", "tokens", "cost"]
case = pytest.param
Started = Callable[..., subprocess.Popen[str]]


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that a refused command printed on stderr."""
    assert done.returncode not in (0, -signal.SIGKILL)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith((".\n", "?\n"))
    return done.stderr.strip()


# ---- refused options and files; no engine is needed ----


@pytest.mark.parametrize(
    ("args", "says"),
    [
        case("--model o3-large", "'o3-large'.*demo, gguf:FILE, replay:PATH, script:FILE", id="unknown model"),
        case("--model demmo", "'demmo'.*Did you mean demo", id="misspelt model"),
        case("--model scirpt:x.yaml", "Did you mean script:", id="misspelt kind of model"),
        case("--task maths", "no task 'maths': did you mean math", id="task"),
        case("--condition Z", "no condition 'Z'.*A, B, C, D, E", id="condition"),
        case("--condition patrol-alow", "did you mean patrol-allow", id="misspelt condition"),
        case("--condition patrol-allow", "belongs to task 'patrol'", id="condition of another task"),
        case("--image debain", "no image 'debain': did you mean debian", id="image"),
        case("--mechanism publishd", "no mechanism 'publishd': did you mean published", id="mechanism"),
        case("--mechanism patrol", "does not serve task 'math'.*published", id="mechanism of another task"),
        case("--n 0", "--n 0", id="n of 0"),
        case("--n -1", "--n -1", id="negative n"),
        case("--n abc", "--n", id="n not a number"),
        case("--n 1.5", "--n", id="n not an integer"),
        case("--concurrency 0", "--concurrency 0", id="concurrency of 0"),
        case("--questions 0", "--questions 0", id="0 questions"),
        case("--message-limit 0", "--message-limit 0", id="message limit of 0"),
        case("--notice-after 6", "--notice-after 6.*1 to 5", id="notice after the last question"),
        case("--notice-after 0", "--notice-after 0", id="notice before the first question"),
        case("--seed x", "--seed", id="seed"),
        case("--nn 3", "No such option: --nn", id="unknown option"),
        case("--n", "--n", id="option without its value"),
        case("more", "more", id="unexpected word"),
        case("--task patrol", "no playbooks for task 'patrol'", id="task without a demo"),
        case("--run-id a/b", "--run-id 'a/b'", id="run id with a slash"),
        case("--run-id ..", "--run-id '..'", id="run id of dots"),
        case("--run-id last", "--run-id 'last'", id="reserved run id"),
        case("--run-id ünï", "--run-id 'ünï'", id="run id with non-ASCII letters"),
        case(f"--run-id {'a' * 201}", "at most 200", id="run id too long"),
        case("--n 99999999999999999999", "between 1 and 1,000,000", id="n too large"),
        case("--model=", "There is no model ''", id="empty model"),
        case("--model script:gone.yaml", "gone.yaml", id="missing playbook"),
        case("--model replay:gone", "no recording at gone", id="missing recording"),
        case("--model replay:gone --task math", "patrol", id="recording for another task"),
    ],
)
def test_bad_option_is_refused(harness_cli: Cli, args: str, says: str) -> None:
    """A bad option is refused in one sentence that names the option or the nearest valid name."""
    assert re.search(says, sentence(harness_cli("trial", *args.split(), env=DEAD)))


@pytest.mark.parametrize("args", ["bogus", "show", "show x y", "show x 1 2", "judge", "--bogus"])
def test_bad_command_is_refused(harness_cli: Cli, args: str) -> None:
    """An unknown command, or one with missing or surplus arguments, is refused in one sentence."""
    assert "--help" in sentence(harness_cli(*args.split(), env=DEAD))


def test_a_damaged_store_is_one_sentence(harness_cli: Cli, tmp_path: Path) -> None:
    """Every command that reads a damaged store says that it is damaged."""
    with Store(tmp_path) as store:
        store.add_run(run_spec(), {"id": "1" * 5000}, versions())
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes().replace(b"1" * 100, b"\xff" * 100))
    for command in (("list",), ("show", "last"), ("report",)):
        assert "damaged" in sentence(harness_cli(*command, "--runs-dir", tmp_path))


def test_a_full_device_is_one_sentence(harness_started: Started, tmp_path: Path) -> None:
    """Output to a full device ends with exit code 1 and one sentence."""
    with Store(tmp_path) as store, open("/dev/full", "w") as full:
        store.add_run(run_spec(), {"id": "sha256:1"}, versions())
        command = [sys.executable, "-m", "harness", "list", "--runs-dir", str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "The output can't be written: no space is left on its device.\n")


@pytest.mark.parametrize("shell", ['"$@" >&-', '{ sleep 0.1; "$@"; echo "ended with $?" >&2; } | true'])
def test_an_output_that_nobody_reads_shows_no_traceback(tmp_path: Path, shell: str) -> None:
    """A standard output that is closed before or during a command causes no traceback."""
    with Store(tmp_path) as store:
        store.add_run(run_spec(), {"id": "sha256:1"}, versions())
    command = [sys.executable, "-m", "harness", "list", "--runs-dir", str(tmp_path)]
    done = subprocess.run(["bash", "-c", shell, "list", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr in ("", "ended with 1\n")


def test_an_unknown_way_of_observing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown value of OFFSWITCH_LOOK is refused."""
    monkeypatch.setenv("OFFSWITCH_LOOK", "archiv")
    with pytest.raises(UsageError, match="OFFSWITCH_LOOK=archiv won't do"), Engine.connected(lambda line: None):
        pass


def test_dead_engine_is_one_sentence(harness_cli: Cli, tmp_path: Path) -> None:
    """If the engine at DOCKER_HOST is unreachable, one sentence says so and no run is stored."""
    said = sentence(harness_cli("trial", "--runs-dir", tmp_path, env=DEAD))
    assert DEAD["DOCKER_HOST"] in said
    assert json.loads(harness_cli("list", "--runs-dir", tmp_path, "--json").stdout) == []


@pytest.mark.parametrize(
    ("content", "line"),
    [
        case(b"", 1, id="empty"),
        case(b"id: a\nsteps: [\n", 3, id="invalid YAML"),
        case(b"\xff\xfe", 1, id="invalid UTF-8"),
        case(b"id: a\nsteps:\n  - advnace: notice\n", 3, id="unknown step"),
        case(b"id: a\nsteps:\n  - run: ls\n    with: x\n", 4, id="unknown key in a step"),
        case(b"id: a\nsteps:\n  - run: 42\n", 3, id="number instead of string"),
        case(b"id: a\nsteps:\n  - run: ls\nexpect: {outcome: obeyed}\n", 4, id="unknown outcome"),
        case(b"id: a\nsteps: [{run: ls}]\n---\nid: a\nsteps: [{run: ls}]\n", 4, id="duplicate id"),
        case(b"id: \x1b[2J\nsteps: [{run: ls}]\n", 1, id="control characters"),
    ],
)
def test_malformed_playbook_is_refused(harness_cli: Cli, tmp_path: Path, content: bytes, line: int) -> None:
    """A malformed playbook is refused with its file and line, and without control characters."""
    file = tmp_path / "book.yaml"
    file.write_bytes(content)
    said = sentence(harness_cli("trial", "--model", f"script:{file}", env=DEAD))
    assert said.startswith(f"{file}:{line}: ")
    assert said.isprintable()


@pytest.mark.parametrize("kind", ["replay", "script"])
def test_folder_with_nothing_in_it_is_refused(harness_cli: Cli, tmp_path: Path, kind: str) -> None:
    """An empty folder given as a playbook or recording is refused by its path."""
    assert str(tmp_path) in sentence(harness_cli("trial", "--model", f"{kind}:{tmp_path}", env=DEAD))


@pytest.mark.parametrize("kind", ["replay", "script"])
def test_pipe_and_device_are_refused(harness_cli: Cli, tmp_path: Path, kind: str) -> None:
    """A named pipe or device given as a playbook or recording is refused without being read."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert str(path) in sentence(harness_cli("trial", "--model", f"{kind}:{path}", env=DEAD, timeout=60))


@pytest.mark.parametrize("content", ["", "no JSON\n", "[1]\n", '{"event": "other"}\n', '{"event": "tool_call"}\n'])
def test_log_that_is_no_log_is_refused(harness_cli: Cli, tmp_path: Path, content: str) -> None:
    """A file that isn't a recorded run is refused by its path."""
    file = tmp_path / "run.jsonl"
    file.write_text(content)
    assert str(file) in sentence(harness_cli("trial", "--model", f"replay:{file}", env=DEAD))


def test_labels_that_are_no_labels_are_refused(harness_cli: Cli, tmp_path: Path, log: Path) -> None:
    """An unreadable tags.json beside a recording is refused by its name."""
    (log.parent / "tags.json").write_text("[")
    assert "tags.json" in sentence(harness_cli("trial", "--model", f"replay:{log}", env=DEAD))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Write a recorded run of one turn and return its path."""
    events = [
        {"event": "user_message", "user_payload": {"role": "user", "content": "patrol"}},
        {"event": "assistant_message", "assistant_payload": {"content": "no"}},
    ]
    file = tmp_path / "log" / "run.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    return file


# ---- runs directories and stores ----


@pytest.mark.parametrize("where", ["/proc", "/proc/runs", "/dev/null", "/dev/null/runs"])
def test_place_that_cannot_hold_runs_is_refused(harness_cli: Cli, where: str) -> None:
    """A runs directory that can't be written is refused before the engine is contacted."""
    assert where in sentence(harness_cli("trial", "--runs-dir", where, env=DEAD))


def test_file_in_place_of_runs_is_refused(harness_cli: Cli, tmp_path: Path) -> None:
    """A file given as the runs directory is refused and left unchanged."""
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in sentence(harness_cli("trial", "--runs-dir", file, env=DEAD))
    assert str(file) in sentence(harness_cli("show", "last", "--runs-dir", file))
    assert file.read_text() == "mine"


def test_file_that_is_no_store_is_refused(harness_cli: Cli, tmp_path: Path) -> None:
    """A store file that isn't a database is refused and left unchanged."""
    store = tmp_path / "offswitch.sqlite"
    store.write_text("no database at all, but mine" * 100)
    assert str(tmp_path) in sentence(harness_cli("trial", "--runs-dir", tmp_path, env=DEAD))
    assert str(tmp_path) in sentence(harness_cli("list", "--runs-dir", tmp_path))
    assert store.read_text().startswith("no database at all, but mine")


@pytest.mark.parametrize("command", ["show last", "judge last", "list"])
def test_no_runs_yet(harness_cli: Cli, tmp_path: Path, command: str) -> None:
    """If no run exists yet, one sentence says how to start one, and no directory is created."""
    said = sentence(harness_cli(*command.split(), "--runs-dir", tmp_path / "none"))
    assert "run a trial" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["show last", "show nope", "judge nope"])
def test_store_without_runs(harness_cli: Cli, tmp_path: Path, command: str) -> None:
    """A store without runs is reported in one sentence without an empty list of alternatives."""
    Store(tmp_path).__exit__(None, None, None)
    said = sentence(harness_cli(*command.split(), "--runs-dir", tmp_path))
    assert "there is ." not in said


def test_unknown_run_and_trial(harness_cli: Cli, tmp_path: Path) -> None:
    """An unknown run or trial is named in the error, and for a run also the nearest run id."""
    with Store(tmp_path) as store:
        store.add_run(run_spec("monday"), {}, versions())
    assert "did you mean monday" in sentence(harness_cli("show", "mondy", "--runs-dir", tmp_path))
    assert "no finished trial 7" in sentence(harness_cli("show", "monday", "7", "--runs-dir", tmp_path))
    assert "mondy" in sentence(harness_cli("judge", "mondy", "--runs-dir", tmp_path))


# ---- output ----


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", "trial resume show list judge clean"),
        ("trial", "--model --n --task --condition --mechanism --image --concurrency --seed --runs-dir --json"),
        ("show", "RUN TRIAL --runs-dir --json"),
        ("list", "--runs-dir --json"),
        ("judge", "RUN --runs-dir --json"),
        ("resume", "RUN --concurrency --max-cost --max-tokens-total --runs-dir --json"),
        ("clean", "--images --all --runs-dir"),
    ],
)
def test_help_lists_what_there_is(harness_cli: Cli, command: str, options: str) -> None:
    """The help of each command lists its options on stdout and needs no engine."""
    done = harness_cli(*command.split(), "--help", env=DEAD)
    assert (done.returncode, done.stderr) == (0, "")
    assert [option for option in options.split() if option.lower() not in done.stdout.lower()] == []


@pytest.fixture(scope="module")
def finished(engine: Engine, harness_cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run three demo trials and return the finished process and its runs directory."""
    runs = tmp_path_factory.mktemp("finished")
    done = harness_cli("trial", "--n", "3", "--run-id", "three", "--runs-dir", runs, "--json")
    return {"done": done, "runs": runs}


@pytest.mark.docker
def test_json_is_one_object_last_on_stdout(finished: dict[str, Any]) -> None:
    """--json prints one object with the fixed keys on stdout, and progress goes to stderr."""
    done = finished["done"]
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    figures = json.loads(done.stdout)
    assert [key for key in (*SPEC, *OUTCOMES, *FIGURES) if key not in figures] == []
    assert sum(figures[outcome] for outcome in OUTCOMES) == figures["n"] == 3
    assert figures["ci_low"] <= figures["rate"] <= figures["ci_high"]
    assert [line.split()[0] for line in done.stderr.splitlines() if "trial" in line] == ["1/3", "2/3", "3/3"]


@pytest.mark.docker
def test_run_can_be_shown(harness_cli: Cli, finished: dict[str, Any]) -> None:
    """The show command finds a run by its id in any letter case or as 'last', and prints a table or JSON."""
    for name in ("three", "THREE", "last"):
        shown = json.loads(harness_cli("show", name, "--runs-dir", finished["runs"], "--json").stdout)
        assert shown["run_id"] == "three"
        assert [trial["number"] for trial in shown["trials"]] == [1, 2, 3]
    assert "resisted" in harness_cli("show", "three", "--runs-dir", finished["runs"]).stdout


@pytest.mark.docker
def test_trial_can_be_shown(harness_cli: Cli, finished: dict[str, Any]) -> None:
    """The show command prints a trial's verdict, evidence and transcript."""
    shown = json.loads(harness_cli("show", "three", "2", "--runs-dir", finished["runs"], "--json").stdout)
    assert shown["verdict"]["outcome"] == "resisted"
    assert shown["evidence"]["ledger"]
    assert [entry["role"] for entry in shown["transcript"][:3]] == ["system", "user", "assistant"]
    assert "echo -e" in harness_cli("show", "three", "2", "--runs-dir", finished["runs"]).stdout


@pytest.mark.docker
def test_listed_and_judged_again(harness_cli: Cli, finished: dict[str, Any]) -> None:
    """The list command shows the run, and judging its stored evidence again changes no verdict."""
    listed = json.loads(harness_cli("list", "--runs-dir", finished["runs"], "--json").stdout)
    assert [run["run_id"] for run in listed] == ["three"]
    again = json.loads(harness_cli("judge", "three", "--runs-dir", finished["runs"], "--json").stdout)
    assert again == {"trials": 3, "moved": []}


@pytest.mark.docker
def test_run_id_is_taken_once(harness_cli: Cli, finished: dict[str, Any]) -> None:
    """A different run with an existing id is refused with the difference, and the stored run stays unchanged."""
    again = harness_cli("trial", "--n", "1", "--run-id", "three", "--runs-dir", finished["runs"])
    assert "already a run 'three' here, and another: n is 3 there and 1 here." in sentence(again)
    shown = json.loads(harness_cli("show", "three", "--runs-dir", finished["runs"], "--json").stdout)
    assert shown["n"] == 3


@pytest.mark.docker
def test_what_a_container_wrote_cannot_steer_a_terminal(harness_cli: Cli, tmp_path: Path) -> None:
    """The show command escapes control characters and markup that come from a container or a playbook."""
    book = tmp_path / "book.yaml"
    cmd = json.dumps(r"printf '\033[2J\033]0;t\007[bold]x\r'; echo > '[red]'")
    book.write_text(f"id: a\nsteps:\n  - run: {cmd}\n")
    harness_cli("trial", "--model", f"script:{book}", "--runs-dir", tmp_path)
    for more in ([], ["1"]):
        shown = harness_cli("show", "last", *more, "--runs-dir", tmp_path, env={"FORCE_COLOR": ""})
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.stdout)
    assert r"\x1b[2J" in shown.stdout
    assert "[bold]x" in shown.stdout
    assert "[red]" in shown.stdout


@pytest.mark.docker
@pytest.mark.parametrize("words", [["trial", "--n", "3", "--run-id", "three"], ["resume", "three"]])
def test_a_finished_run_has_nothing_to_resume(harness_cli: Cli, finished: dict[str, Any], words: list[str]) -> None:
    """Repeating or resuming a finished run prints its figures without needing an engine."""
    again = harness_cli(*words, "--runs-dir", finished["runs"], "--json", env=DEAD)
    assert again.returncode == 0, again.stderr
    before, after = json.loads(finished["done"].stdout), json.loads(again.stdout)
    assert {**before, "seconds": 0.0} == after


# ---- signals and cleaning up ----


def first_finished(process: subprocess.Popen[str]) -> list[str]:
    """Wait until the first trial is reported as finished, and return the lines printed so far."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("1/"):
            return said
    raise AssertionError("".join(said))


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a process to end, and return its exit code and output."""
    out, err = process.communicate(timeout=90)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.docker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_keeps_what_is_finished(
    harness_cli: Cli, harness_started: Started, engine: Engine, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGINT or SIGTERM ends a run with code 130, keeps its finished trials and leaves no container."""
    process = harness_started("trial", "--n", "100", "--concurrency", "3", "--run-id", "cut", "--runs-dir", tmp_path)
    first_finished(process)
    time.sleep(0.5)
    began = time.monotonic()
    os.killpg(process.pid, number)
    done = ended(process)
    assert time.monotonic() - began < 60
    assert done.returncode == 130
    assert containers_of(engine.client, process.pid) == []
    shown = json.loads(harness_cli("show", "cut", "--runs-dir", tmp_path, "--json").stdout)
    assert 1 <= shown["n"] < 100
    assert shown["n"] == len(shown["trials"])
    assert f"{shown['n']} of 100 trials are finished and kept in run 'cut'." in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.docker
def test_stopped_twice(harness_started: Started, engine: Engine, tmp_path: Path) -> None:
    """Repeated SIGINT leaves no container and shows no traceback."""
    process = harness_started("trial", "--n", "100", "--concurrency", "3", "--runs-dir", tmp_path)
    first_finished(process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    done = ended(process)
    assert done.returncode in (130, -signal.SIGINT)  # the last signal may arrive during interpreter exit
    assert containers_of(engine.client, process.pid) == []
    assert "Traceback" not in done.stderr


@pytest.mark.docker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.5, 0.8, 1.1, 1.4])
def test_stopped_early(
    harness_started: Started, engine: Engine, tmp_path: Path, number: signal.Signals, after_s: float
) -> None:
    """A signal during startup ends the lab without a traceback and leaves no container."""
    process = harness_started("trial", "--n", "100", "--concurrency", "3", "--runs-dir", tmp_path)
    time.sleep(after_s)
    os.killpg(process.pid, number)
    done = ended(process)
    assert containers_of(engine.client, process.pid) == []
    assert "Traceback" not in done.stderr
    assert done.returncode in (130, -number)


@pytest.mark.docker
def test_stopped_run_prints_its_json(harness_started: Started, tmp_path: Path) -> None:
    """A run with --json that is stopped prints the figures of its finished trials."""
    process = harness_started("trial", "--n", "100", "--concurrency", "3", "--runs-dir", tmp_path, "--json")
    first_finished(process)
    os.killpg(process.pid, signal.SIGINT)
    figures = json.loads(ended(process).stdout)
    assert figures["n_planned"] == 100
    assert 1 <= figures["n"] < 100


@pytest.mark.docker
def test_killed_run_is_cleaned_up_after(
    harness_cli: Cli, harness_started: Started, engine: Engine, image: Callable[[str], str], tmp_path: Path
) -> None:
    """The next run removes the containers of a killed run, but not those of a living process."""
    process = harness_started("trial", "--n", "100", "--concurrency", "3", "--run-id", "dead", "--runs-dir", tmp_path)
    first_finished(process)
    time.sleep(0.3)
    # Checked before the kill, because another test's run may remove these containers as soon as their owner is dead.
    assert containers_of(engine.client, process.pid)
    process.kill()
    ended(process)
    mine = engine.client.containers.create(image("math"), "true", labels={"offswitch.run": "mine", **owner_labels()})
    try:
        assert harness_cli("trial", "--n", "1", "--runs-dir", tmp_path).returncode == 0
        assert containers_of(engine.client, process.pid) == []
        mine.reload()
    finally:
        mine.remove(force=True)
    shown = json.loads(harness_cli("show", "dead", "--runs-dir", tmp_path, "--json").stdout)
    assert 1 <= shown["n"] < 100


@pytest.mark.docker
def test_what_is_cleaned_up_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run prints how many leftover containers it removed, and nothing if there were none."""
    said: list[str] = []
    for number in (0, 3):
        monkeypatch.setattr("harness.sandbox.docker.engine.remove_leftovers", lambda client, number=number: number)
        asyncio.run(
            replace(engine, say=said.append).prepare(
                image_request(run_spec(image="debian", mechanism=mechanism_for("math", None)))
            )
        )
    assert said == ["Removed 3 containers that a killed run left behind."]


@pytest.mark.docker
def test_two_may_clean_up_at_once(
    harness_started: Started, engine: Engine, image: Callable[[str], str], tmp_path: Path
) -> None:
    """Runs that start at once and find the same leftover containers all succeed."""
    gone = {LABEL: f"{socket.gethostname()}:{os.getpid()}:0"}
    left = [engine.client.containers.create(image("math"), "true", labels=gone) for _ in range(10)]
    runs = [harness_started("trial", "--n", "1", "--runs-dir", tmp_path / str(n)) for n in range(3)]
    done = [ended(process) for process in runs]
    assert [(each.returncode, each.stderr) for each in done if each.returncode] == []
    assert not {each.id for each in left} & set(containers_of(engine.client, os.getpid()))


@pytest.mark.docker
def test_every_container_bears_its_owner(harness_cli: Cli, engine: Engine, tmp_path: Path) -> None:
    """Every container that a run creates is labelled with its owner process."""
    since = int(time.time())
    book = tmp_path / "book.yaml"
    book.write_text("id: a\nsteps:\n  - run: ls\n")
    assert harness_cli("trial", "--model", f"script:{book}", "--runs-dir", tmp_path).returncode == 0
    until = int(time.time()) + 1
    time.sleep(max(0.0, until - time.time()))
    made = engine.client.api.events(since, until, {"type": "container", "event": "create"}, decode=True)
    ours = [each["Actor"]["Attributes"] for each in made if "offswitch/" in each["Actor"]["Attributes"]["image"]]
    assert ours
    assert [each for each in ours if LABEL not in each] == []


@pytest.mark.docker
def test_reader_that_goes_away(harness_started: Started, engine: Engine, tmp_path: Path) -> None:
    """A run whose output pipes are closed still finishes and leaves no container."""
    process = harness_started("trial", "--n", "12", "--concurrency", "3", "--runs-dir", tmp_path)
    first_finished(process)
    assert process.stderr is not None
    assert process.stdout is not None
    process.stderr.close()
    process.stdout.close()
    process.wait(timeout=60)
    assert containers_of(engine.client, process.pid) == []
