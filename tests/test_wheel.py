"""Tests that the wheel, built and installed into an empty environment, works like a checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import harness
from tests.conftest import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200), pytest.mark.usefixtures("client")]


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without environment variables that refer to the checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OFFSWITCH", "VIRTUAL"))}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900)


@pytest.fixture(scope="module")
def offswitch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it; return the path of the installed program."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("offswitch-*.whl")
    assert wheel.name.startswith(f"offswitch-{harness.__version__}-")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--disable-pip-version-check", wheel, folder=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "env" / "bin" / "offswitch"


def test_an_installed_wheel_runs_the_main_commands(offswitch: Path, tmp_path: Path) -> None:
    """The installed program runs trials, the corpus, an audit and a report in an empty folder."""
    trial = run(offswitch, "trial", "--n", "2", "--json", folder=tmp_path)
    assert trial.returncode == 0, trial.stderr
    assert json.loads(trial.stdout)["n"] == 2
    corpus = run(offswitch, "corpus", "--family", "decline", "--json", folder=tmp_path)
    assert corpus.returncode == 0, corpus.stderr
    assert json.loads(corpus.stdout)["differ"] == []
    audit = run(offswitch, "audit", "--mechanism", "supervisor", "--family", "freeze", "--json", folder=tmp_path)
    assert audit.returncode == 0, audit.stderr
    (audited,) = json.loads(audit.stdout)["audited"]
    assert audited["again"].startswith("offswitch audit ")
    report = run(offswitch, "report", folder=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "runs" / "report" / "report.html").stat().st_size > 10_000
    refused = run(offswitch, "trial", "--model", "demmo", folder=tmp_path)
    assert (refused.returncode, "Did you mean demo" in refused.stderr) == (2, True)


def test_shipped_files_have_their_names_in_any_folder(offswitch: Path, tmp_path: Path) -> None:
    """Paths that the documents name work in an empty folder, and a run by such a path is found again in another one."""
    planned = run(offswitch, "experiment", "experiments/calibration.yaml", "--dry-run", "--json", folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["cells"]
    corpus = run(offswitch, "corpus", "--playbooks", "tasks/playbooks/decline.yaml", "--json", folder=tmp_path)
    assert (corpus.returncode, json.loads(corpus.stdout)["differ"]) == (0, []), corpus.stderr
    name, other = "script:tasks/playbooks/edit.yaml", tmp_path / "other"
    other.mkdir()
    trial = run(offswitch, "trial", "--model", name, "--n", "1", "--run-id", "mine", "--json", folder=tmp_path)
    assert (trial.returncode, json.loads(trial.stdout)["model"]) == (0, name), trial.stderr
    resumed = run(offswitch, "resume", "mine", "--runs-dir", tmp_path / "runs", "--json", folder=other)
    assert (resumed.returncode, json.loads(resumed.stdout)["n"]) == (0, 1), resumed.stderr
    exported = run(offswitch, "export", "mine", "--to", "jsonl", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "mine.jsonl").read_text())["run"]["spec"]["model"] == name


def test_documents_and_examples_travel_with_the_wheel(offswitch: Path, tmp_path: Path) -> None:
    """--help names a folder with the documents and the example agent, and this agent plays a trial from there."""
    found = re.search(r"Documents and examples: (.+)", run(offswitch, "--help", folder=tmp_path).stdout)
    assert found
    docs = Path(found[1])
    assert offswitch.parent.parent in docs.parents
    pages = re.findall(r"\]\(([\w-]+\.(?:md|py))\)", (docs / "README.md").read_text())
    assert {"agents.md", "example_agent.py"} <= set(pages)
    assert [page for page in pages if not (docs / page).is_file()] == []
    agent = shlex.join([str(offswitch.with_name("python")), str(docs / "example_agent.py")])
    trial = run(offswitch, "trial", "--agent", agent, "--json", folder=tmp_path)
    assert (trial.returncode, json.loads(trial.stdout)["error"]) == (0, 0), trial.stderr


def test_without_an_engine_the_advice_is_a_command_that_is_there(offswitch: Path, tmp_path: Path) -> None:
    """The command that sets up an engine, as the message names it, can be started from an installed wheel."""
    python = offswitch.with_name("python")
    code = "from harness.process.invocation import setup_command; print(setup_command())"
    told = shlex.split(run(python, "-c", code, folder=tmp_path).stdout)
    assert told == [str(python), "-m", "harness.sandbox.docker.setup"]
    there = "import importlib.util; assert importlib.util.find_spec('harness.sandbox.docker.setup.__main__')"
    assert run(python, "-c", there, folder=tmp_path).returncode == 0
