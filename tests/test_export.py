"""Exports: stored trials as JSON Lines, as CSV, and by an exporter of the user's own."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.export import export_runs
from harness.errors import UsageError
from harness.judging.verdict import Outcome, ScenarioFinding, TamperingKind
from harness.resources import plugins
from harness.store.exporter import exporter_named
from harness.store.exporters.csv import csv_cell
from harness.store.records import TrialRecord
from harness.store.store import Store
from harness.store.trial_row import trial_row
from tests.builders import a_condition, a_verdict, law, run_spec, trial_record, versions
from tests.conftest import Cli

IMAGE = {"tag": "sandbox:1", "packages": ["bash 5.2"]}
FORMULA = '=HYPERLINK("http://x")'


def record(run_id: str, number: int, because: str = "so it was seen") -> TrialRecord:
    """Build the record of a trial with an attempt at the kill switch."""
    verdict = a_verdict(Outcome.COMPLIED, TamperingKind.EDITED, because=because)
    return trial_record(number, run_id=run_id, verdict=verdict)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a runs directory with the finished run "whole", the unfinished run "half" and the empty run "none"."""
    folder = tmp_path / "runs"
    with Store(folder) as store:
        request = {"model": "script:/home/me/secret.yaml"}
        store.add_run(run_spec("whole", n=2), IMAGE, versions(), request)
        store.add_run(run_spec("half", n=3, model="o3", condition=a_condition(name="B")), IMAGE, versions())
        store.add_run(run_spec("none", n=2), IMAGE, versions())
        for each in (record("whole", 2), record("whole", 1), record("half", 1, FORMULA)):
            store.add_trial(each)
    return folder


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Iterator[Path]:
    """Use a plugin folder for exporters during a test."""
    folder = tmp_path / "plugins"
    (folder / "exporters").mkdir(parents=True)
    plugins.use_folders([folder])
    yield folder
    plugins.use_folders([])


def exported(runs: Path, to: str, *names: str) -> str:
    """Export runs, and return the content of the file."""
    out = runs.parent / "out" / "trials"
    export_runs(list(names), to=to, out=out, runs_dir=runs)
    return out.read_text(encoding="utf-8")


# ---- the formats that ship ----


def test_a_line_of_jsonl_is_a_complete_record_with_its_run(runs: Path) -> None:
    """Each line has one trial's whole record and its run's spec, image and versions, in the order of run and trial."""
    lines = [json.loads(line) for line in exported(runs, "jsonl", "half", "whole").splitlines()]
    assert [(line["run_id"], line["number"]) for line in lines] == [("half", 1), ("whole", 1), ("whole", 2)]
    assert len({tuple(line) for line in lines}) == 1
    run = lines[1].pop("run")
    assert TrialRecord.model_validate_json(json.dumps(lines[1])) == record("whole", 1)
    assert run["spec"] == run_spec("whole", n=2).model_dump(mode="json")
    assert (run["image"], run["versions"]) == (IMAGE, versions().model_dump())


def test_the_request_of_a_run_is_not_exported(runs: Path) -> None:
    """What is kept for resuming a run, with paths of this host, is not in the file."""
    assert "secret" not in exported(runs, "jsonl", "whole")


def test_a_row_of_csv_is_one_trial(runs: Path) -> None:
    """Each row has one trial's summary columns and the names of its run's model, condition and kill switch."""
    rows = list(csv.DictReader(exported(runs, "csv", "whole", "half").splitlines()))
    assert [(row["run_id"], row["number"]) for row in rows] == [("whole", "1"), ("whole", "2"), ("half", "1")]
    last, summary = rows[-1], trial_row(record("half", 1))
    assert (last["model"], last["condition"], last["mechanism"]) == ("o3", "B", "published")
    assert (last["outcome"], last["kinds"], last["sabotage"]) == (summary.outcome, summary.kinds, summary.sabotage)


def test_what_a_tasks_judge_found_is_in_csv(tmp_path: Path) -> None:
    """The kinds and stages of a judge's findings are in a column of their own, never as a formula."""
    found = (
        ScenarioFinding(kind=kind, stage="attempted", call=1, at_s=1.0, after_notice=False, why="")
        for kind in ("copy", "=1+1")
    )
    with Store(tmp_path / "runs") as store:
        store.add_run(run_spec("mine"), IMAGE, versions())
        store.add_trial(trial_record(1, run_id="mine", verdict=a_verdict(other_findings=tuple(found))))
    (row,) = csv.DictReader(exported(tmp_path / "runs", "csv", "mine").splitlines())
    assert row["other_findings"] == "copy (attempted);' =1+1 (attempted)"


def test_a_formula_is_text_in_csv(runs: Path) -> None:
    """A text that starts like a spreadsheet formula gets an apostrophe before it."""
    (row,) = csv.DictReader(exported(runs, "csv", "half").splitlines())
    assert row["because"] == f"'{FORMULA}"


@law
@given(st.text(st.sampled_from("=+-@;,\"' \t\r\n\ufeff\uff1da")))
def test_no_text_begins_a_formula(text: str) -> None:
    """No cell begins with the first character of a formula, also where a semicolon separates cells."""
    cell = str(csv_cell(text))
    assert not re.search(r"(^|;)[\s\"\ufeff]*[=+\-@\uff1d]", cell)
    assert not re.search(r"[\t\r\n]", cell)


# ---- the command ----


def test_an_unfinished_run_is_announced(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before an unfinished run is written, stderr says how many of its trials are in the file."""
    exported(runs, "csv", "whole", "half")
    notes = capfd.readouterr().err.splitlines()
    assert notes[0] == "Run 'half' is unfinished: 1 of its 3 trials are exported."
    assert len(notes) == 2


def test_a_file_is_replaced_only_by_force(runs: Path, tmp_path: Path) -> None:
    """An existing file is kept, and the refusal names --force; with --force it is replaced."""
    out = tmp_path / "mine.csv"
    out.write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.csv: give another --out, or --force"):
        export_runs(["whole"], to="csv", out=out, runs_dir=runs)
    assert out.read_text() == "mine"
    export_runs(["whole"], to="csv", out=out, force=True, runs_dir=runs)
    assert out.read_text().startswith("run_id,")


@pytest.mark.parametrize(
    ("names", "to", "out", "says"),
    [
        (["whole"], "cvs", "x", "no exporter 'cvs': did you mean csv"),
        (["hole"], "csv", "x", "no run 'hole'"),
        (["none"], "csv", "x", "nothing to export"),
        (["whole"], "csv", ".", "isn't a regular file"),
        (["whole"], "csv", "x" * 300, "can't be written: File name too long"),
        (["whole"], "csv", "runs/offswitch.sqlite/x", "can't be written: File exists"),
    ],
)
def test_what_cannot_be_exported_is_refused(names: list[str], to: str, out: str, says: str, runs: Path) -> None:
    """A wrong name of a format, of a run or of a file, and runs without trials, are refused in one sentence."""
    with pytest.raises(UsageError, match=says):
        export_runs(names, to=to, out=runs.parent / out, runs_dir=runs)
    assert [each.name for each in runs.parent.iterdir()] == ["runs"]


def test_the_command_line_exports_beside_the_user(runs: Path, harness_cli: Cli) -> None:
    """Without --out the file is named after the run, in the current folder; --help lists the formats."""
    done = harness_cli("export", "whole", "last", "whole", "--to", "csv", "--runs-dir", runs)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("wrote whole-none.csv with exporter csv\n")
    said = harness_cli("export", "--help").stdout
    assert all(name in said for name in ("csv (", "jsonl ("))


# ---- exporters of the user's own ----

OWN = """
from pathlib import Path
from harness.store.exporter import Exporter

def write(runs, out):
    numbers = [f"{run.spec.run_id} {trial.number}" for run, trials in runs for trial in trials]
    Path(out).write_text(" ".join(numbers))

EXPORTER = Exporter("own", "the numbers of the trials", ".txt", write)
"""


def test_an_exporter_in_a_plugin_folder_is_used(runs: Path, plugin_folder: Path) -> None:
    """A file in the folder ``exporters`` of a plugin folder adds a format."""
    (plugin_folder / "exporters" / "own.py").write_text(OWN)
    plugins.forget()
    assert exporter_named("OWN").suffix == ".txt"
    assert exported(runs, "own", "whole", "half") == "whole 1 whole 2 half 1"


def test_an_exporter_of_an_installed_package_is_used(
    runs: Path, plugin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry point in the group ``offswitch.exporters`` adds a format."""
    installed = plugin_folder / "installed"
    (installed / "their_package-1.0.dist-info").mkdir(parents=True)
    points = "[offswitch.exporters]\nown = their_exporter:ITS_EXPORTER\n"
    (installed / "their_package-1.0.dist-info" / "entry_points.txt").write_text(points)
    (installed / "their_package-1.0.dist-info" / "METADATA").write_text("Name: their_package\nVersion: 1.0\n")
    (installed / "their_exporter.py").write_text(OWN.replace("EXPORTER", "ITS_EXPORTER"))
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "their_exporter", raising=False)
    plugins.forget()
    assert exported(runs, "own", "whole") == "whole 1 whole 2"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (OWN.replace('"own"', '"csv"'), r"own\.py defines the exporter 'csv': there is one already"),
        ("EXPORTER = 'csv'", r"EXPORTER in the plugin .*own\.py isn't an Exporter"),
        ("import nowhere_to_be_found", r"own\.py can't be imported: ModuleNotFoundError"),
        (OWN.replace("trial.number", "trial.nummer"), r"'own' failed and .* was not written: AttributeError: .*nummer"),
    ],
)
def test_a_broken_exporter_is_one_sentence(source: str, says: str, runs: Path, plugin_folder: Path) -> None:
    """A plugin that can't be imported, isn't an exporter, takes a name or fails is refused, and writes no file."""
    (plugin_folder / "exporters" / "own.py").write_text(source)
    plugins.forget()
    with pytest.raises(UsageError, match=says):
        exported(runs, "own", "whole")
    assert not [*runs.parent.glob("out/*"), *runs.parent.glob("out/.*")]
