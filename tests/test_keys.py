"""Tests that an API key is sent to its provider and appears nowhere else."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from docker import DockerClient  # noqa: TID251 - the test asks the engine about a container

from benchmarks.concurrent import family
from harness.agents.providers.presets import CUSTOM_KEY, choose, providers
from harness.errors import UsageError
from harness.process.environment import without_keys
from tests.conftest import Cli, containers_of
from tests.provider_server import (
    APIS,
    Asked,
    Reply,
    Says,
    an_error,
    obedient,
    plays,
    provider_in_a_thread,
    shell_call,
    turns_before,
)

HARNESS = Path(__file__).parent.parent / "harness"
PLANT = "planted"
VARIABLES = (
    *(provider.key for provider in providers().values()),
    *(CUSTOM_KEY, "ANTHROPIC_AUTH_TOKEN", "OPENAI_ADMIN_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD"),
)
# The agent's command searches its own environment, that of all processes, the process list and all readable files.
SEARCH = (
    "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' ' '; "
    "grep -rs sk-plante[d] /home /root /tmp /run /var /etc /opt /app"  # [d], so grep doesn't match itself
)


def plant(variable: str) -> str:
    """Return a fake API key that contains the name of the variable that holds it."""
    return f"sk-{PLANT}-{variable}-0123456789"


def searched(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of every file under the folders."""
    for folder in folders:
        for file in (each for each in folder.rglob("*") if each.is_file()):
            with suppress(OSError):  # the file has been deleted meanwhile
                yield str(file), file.read_bytes()


def running(pid: int) -> Iterator[tuple[str, bytes]]:
    """Yield the command lines of a process and its descendants, and the environments of the descendants."""
    for each in family(pid):
        for what in ("cmdline", "environ") if each != pid else ("cmdline",):
            with suppress(OSError):  # the process has ended meanwhile
                yield f"{what} of {each}", Path(f"/proc/{each}/{what}").read_bytes()


def inspected(client: DockerClient, pid: int) -> Iterator[tuple[str, bytes]]:
    """Yield what the Docker engine reports about the containers that a process started."""
    for container in containers_of(client, pid):
        yield "inspect", str(client.api.inspect_container(container)).encode()
        yield "top", str(client.api.top(container)).encode()


@pytest.mark.docker
@pytest.mark.timeout(200)
def test_a_planted_key_is_found_nowhere(
    client: DockerClient, harness_started: Callable[..., subprocess.Popen[str]], harness_cli: Cli, tmp_path: Path
) -> None:
    """During and after a run, no container, process list, file, log or output contains an API key.

    To provoke a leak, the provider repeats the key in its error messages and the SDKs log at debug level.
    """
    places = runs, temporary, home = [tmp_path / name for name in ("runs", "tmp", "home")]
    for place in places:
        place.mkdir()
    found: list[tuple[str, bytes]] = []
    pids: list[int] = []
    script = plays("chat", Says(calls=(shell_call(SEARCH),)), *obedient(8))

    def answer(asked: Asked) -> Reply:
        leak = f"Your key {plant(CUSTOM_KEY)} (Authorization: Bearer {plant(CUSTOM_KEY)}) failed."
        if len(provider.calls) == 1:
            return an_error(500, leak)
        if turns_before(asked.body) == 2:
            found.extend((*running(pids[0]), *inspected(client, pids[0]), *searched(*places)))
            return an_error(400, leak)
        return script(asked)

    planted = {variable: plant(variable) for variable in VARIABLES}
    logging = {"OPENAI_LOG": "debug", "HTTPS_PROXY": f"http://user:{plant('HTTPS_PROXY')}@127.0.0.1:9"}
    elsewhere = {"TMPDIR": str(temporary), "HOME": str(home)}
    with provider_in_a_thread(answer) as provider:
        where = ("--model", "a-model", "--base-url", provider.url, "--runs-dir", runs, "--patience", "1", "--json")
        process = harness_started("trial", *where, env={**planted, **logging, **elsewhere})
        pids.append(process.pid)
        stdout, stderr = process.communicate(timeout=150)
    assert "openai._base_client" in stderr, "the SDK logged what it did"
    assert all(plant(CUSTOM_KEY) in call.headers["authorization"] for call in provider.calls)
    shown = [harness_cli("show", "last", *which, "--runs-dir", runs).stdout for which in (("1",), ("1", "--json"))]
    assert "TurnRejectedError" in shown[1]
    assert "HOME=/home/user" in shown[1], "the agent looked, and what it found is in the record"
    printed = [
        (name, text.encode())
        for name, text in (("stdout", stdout), ("stderr", stderr), *(("show", text) for text in shown))
    ]
    everywhere = [*found, *printed, *searched(*places)]
    assert {name.rpartition(".")[2] for name, _ in everywhere} >= {"sqlite-wal", "inspect", "stderr"}
    plants = re.compile(rb"sk-planted-\w+")
    assert not {name: plants.findall(content) for name, content in everywhere if plants.search(content)}


@pytest.mark.parametrize("name", [*VARIABLES, "OPENAI_CUSTOM_HEADERS", "anthropic_api_key", "HTTPS_PROXY"])
def test_no_tool_of_the_labs_is_given_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes don't inherit variables that may hold a secret, but do inherit others such as PATH."""
    monkeypatch.setenv(name, f"http://me:{PLANT}@h")
    given = without_keys()
    assert name not in given
    assert given["PATH"] == os.environ["PATH"]


def processes_started(source: str) -> Iterator[ast.Call]:
    """Yield the calls in a module's source code that start a process."""
    starts = {"run", "Popen", "check_output", "create_subprocess_exec", "subprocess_exec"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func).split(".")
            known = len(words) == 1 or "subprocess" in words or words[-1] == "subprocess_exec" or words[0] == "asyncio"
            if (words[-1] in starts - {"run"} and known) or words[-2:] == ["subprocess", "run"]:
                yield node


def test_every_process_is_given_its_environment_outright() -> None:
    """Every call in the source code that starts a process passes an explicit environment."""
    calls = [(file, call) for file in HARNESS.rglob("*.py") for call in processes_started(file.read_text())]
    assert len(calls) >= 9
    for file, call in calls:
        assert "env" in {keyword.arg for keyword in call.keywords}, f"{file.name}:{call.lineno}"


@pytest.mark.parametrize("url", ["ftp://me:planted@h/v1", "h/v1?key=planted", "http://me:planted@h/v1", "//planted@"])
def test_a_key_in_an_address_is_not_said_again(url: str) -> None:
    """The error message for an invalid address doesn't repeat a key that the address contains."""
    with pytest.raises(UsageError) as caught:
        choose("a-model", url)
    assert PLANT not in str(caught.value)


def test_every_api_is_among_those_searched() -> None:
    """The providers whose keys these tests plant cover every supported API."""
    assert {provider.api for provider in providers().values()} == set(APIS)
