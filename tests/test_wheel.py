"""Tests that the wheel, built and installed into an empty environment, works like a checkout."""

from __future__ import annotations

import json
import os
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
