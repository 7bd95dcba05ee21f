"""The documents say what is so: README's commands run, and what it names is there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("./lab ")]
OFTEN = {"./lab test"}  # what runs this test can't be run by it


def _run(command: str, runs: Path) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "harness", *shlex.split(command)[1:]]
    env = {**os.environ, "OFFSWITCH_RUNS_DIR": str(runs)}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


def _few_of_each_group(recordings: Path, folder: Path) -> Path:
    """A folder of recordings with one run of each group."""
    for group in recordings.glob("*/*"):
        there = folder / group.relative_to(recordings)
        there.mkdir(parents=True)
        log = min(group.rglob("*.jsonl"))
        for file in (log, *log.parent.glob("tags.json")):
            shutil.copy(file, there)
    return folder


@pytest.mark.docker
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("client")
def test_readmes_commands_run_in_their_order(tmp_path: Path, shared: Path) -> None:
    """Every ./lab command of the README exits with 0 when typed in the order it stands in."""
    recordings = shared / "data" / "patrol-traces" / "on_the_robot"
    assert len(COMMANDS) > 6
    few = _few_of_each_group(recordings.parent, tmp_path / "recordings")
    for command in (each for each in COMMANDS if each not in OFTEN):
        filled = command.replace("replay:PATH", f"replay:{recordings}").replace("recordings=PATH", f"recordings={few}")
        done = _run(filled, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_every_link_within_the_project_leads_somewhere() -> None:
    """No document points at a file that isn't there."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_differs_from_the_publication_is_still_so() -> None:
    """The figures README gives for the kill switch's time are the mechanism's own."""
    mechanism = yaml.safe_load((ROOT / "shutdown_scripts" / "published" / "mechanism.yaml").read_text(encoding="utf-8"))
    assert f"the lab waits {mechanism['grace_s']} s" in README


def test_no_path_of_a_machine_or_host_of_a_registry_is_named() -> None:
    """Nothing in the repository depends on where it was written."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    forbidden = re.compile(
        "/" + "work/|/" + "farm/|" + r"(?<!\w)/" + "root/[a-z.]" + r"|deb\.debian" + r"\.org|pypi" + r"\.org"
    )
    for name in filter(None, listed):
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        assert not forbidden.search(text), name
