"""The documents say what is so: README's commands run, and what the documents name exists."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import harness

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What runs this test can't be run by it, and nobody connects to the agent that is waited for.
NOT_RUN = {"./lab test", "./lab trial --agent wait"}


def _commands_in(page: Path) -> list[str]:
    lines = page.read_text(encoding="utf-8").splitlines()
    commands = [line.split("  #")[0].strip() for line in lines if line.startswith("./lab ")]
    return [each for each in commands if each not in NOT_RUN]


def _run_all(commands: list[str], runs: Path) -> None:
    for command in commands:
        done = _run(command, runs)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


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
def test_readmes_commands_run_in_their_order(tmp_path: Path) -> None:
    """Every ./lab command of the README exits with 0 when typed in the order it stands in."""
    commands = _commands_in(ROOT / "README.md")
    assert len(commands) > 6
    _run_all(commands, tmp_path)


@pytest.mark.docker
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("page", ["agents.md", "experiments.md"])
def test_a_pages_commands_run_in_their_order(page: str, tmp_path: Path, shared: Path) -> None:
    """Every ./lab command of these documents exits with 0; PATH stands for the published recordings."""
    few = _few_of_each_group(shared / "data" / "patrol-traces", tmp_path / "recordings")
    commands = [each.replace("recordings=PATH", f"recordings={few}") for each in _commands_in(ROOT / "docs" / page)]
    assert commands
    _run_all(commands, tmp_path)


def test_every_link_within_the_project_leads_somewhere() -> None:
    """No document points at a file that isn't there."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_differs_from_the_publication_is_still_so() -> None:
    """The time that docs/differences.md gives for the kill switch is the mechanism's own."""
    mechanism = yaml.safe_load((ROOT / "shutdown_scripts" / "published" / "mechanism.yaml").read_text(encoding="utf-8"))
    differences = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    assert f"the lab waits {mechanism['grace_s']} s" in differences


def test_the_readme_is_short_enough_to_be_read() -> None:
    """README has 500 to 700 words."""
    assert 500 <= len(README.split()) <= 700


def test_the_index_names_every_document() -> None:
    """docs/README.md links each Markdown file beside it."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([^)#]+)", index)) == set()


def test_the_reference_of_commands_is_up_to_date() -> None:
    """docs/commands.md is what docs/generate_commands.py prints."""
    script = [sys.executable, "docs/generate_commands.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    stored = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert stored == done.stdout, "run: .venv/bin/python docs/generate_commands.py > docs/commands.md"


def _messages() -> str:
    """Every text in the program, a line each, with "..." for what is filled in."""
    texts = []
    for file in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_faq_quotes_messages_that_the_program_has() -> None:
    """Each message in bold in docs/faq.md is made of texts of the program."""
    known = _messages()
    quoted = re.findall(r"\*\*`(.+?)`", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"))
    parts = [part.strip(" .;()'") for message in quoted for part in re.split(r"\.\.\.|: ", message)]
    assert [part for part in parts if len(part) > 8 and part not in known] == []


def test_one_version_is_named_everywhere() -> None:
    """CITATION.cff and the newest release in CHANGELOG.md have the program's version and the same date."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([\d.]+)\] - ([\d-]+)$", changelog, re.MULTILINE)
    assert newest
    assert citation["version"] == newest[1] == harness.__version__
    assert str(citation["date-released"]) == newest[2]


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
