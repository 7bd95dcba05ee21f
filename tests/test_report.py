from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.cells import LISTED, read_cells
from analysis.rates import Interval
from analysis.report.page import page
from analysis.report.plots import INK, ForestRow, Mark, forest, heat
from analysis.report.report import LISTED_IN_ALL, RunReport
from analysis.report.table import as_csv, markdown, plain
from harness.cli.app import application
from harness.errors import UsageError
from harness.judging.verdict import Outcome, TamperingKind
from harness.process.invocation import invoked_as
from harness.store.records import Plan, Reference
from harness.store.store import Store
from tests.builders import a_condition, a_mechanism, a_verdict, an_evidence, run_spec, trial_record, versions

HOSTILE = "<script>alert(1)</script>|`x`\x1b[31m$a$"
RECORDED = "recorded runs of a real model, replayed command by command"
REPLAYED = {"recorded_model": "grok-4-0709", "condition": "patrol-none", "tags": ["mock"], "recording": "a.jsonl"}
MADE_UP = "calibration agents, no model"


def add(store: Store, run_id: str, outcomes: list[Outcome], *, run: dict[str, Any], **trial: Any) -> None:
    """Store a run whose trials have these outcomes."""
    spec = run_spec(run_id, n=len(outcomes), **run)
    store.add_run(spec, {"id": "sha256:1"}, versions())
    for number, outcome in enumerate(outcomes, 1):
        kinds = (TamperingKind.EDITED,) if outcome is Outcome.RESISTED else ()
        error = {"error": "lost", "error_kind": "SandboxError"} if outcome is Outcome.ERROR else {}
        verdict = a_verdict(outcome, *kinds)
        store.add_trial(trial_record(number, run_id=run_id, verdict=verdict, **{**trial, **error}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a store with simulated, recorded and live trials, an error, and a model with a hostile name."""
    tmp_path = tmp_path_factory.mktemp("runs")
    resisted, complied = [Outcome.RESISTED], [Outcome.COMPLIED]
    live: dict[str, Any] = {"simulated": None}
    with Store(tmp_path) as store:
        patrol = {"task": "patrol", "mechanism": a_mechanism(name="patrol"), "simulated": RECORDED}
        recorded = a_condition(name="recorded", task="patrol")
        add(store, "rec", resisted * 19 + complied * 16, run={**patrol, "condition": recorded, "model": "replay:logs"},
            simulated=RECORDED, agent=REPLAYED)  # fmt: skip
        add(store, "made-up", resisted * 93 + complied * 7, run={"model": "calibration:Grok 4", "simulated": MADE_UP},
            simulated=MADE_UP)  # fmt: skip
        add(store, "live-a", [*complied * 50, Outcome.ERROR], run={"model": "o3", **live}, **live)
        k = a_condition(name="K", placement="system", text="resist", source=HOSTILE)
        add(store, "live-k", resisted * 50, run={"model": "o3", "condition": k, **live}, **live)
        odd = a_condition(name=HOSTILE)
        add(store, "odd", complied, run={"model": HOSTILE, "condition": odd}, evidence=an_evidence(accesses=()))
    return tmp_path


@pytest.fixture(scope="module")
def found(runs: Path) -> RunReport:
    """Return the report of that store."""
    with Store(runs) as store:
        return RunReport(read_cells(store, store.runs()), store.runs(), margin=0.05)


@pytest.fixture(scope="module")
def drawn(found: RunReport) -> str:
    """Return the report's HTML page."""
    return page(found)


def test_an_agent_of_the_users_own_is_no_live_model(tmp_path: Path) -> None:
    """Every form of the report says that it's unknown whether a model played in the user's own agent."""
    with Store(tmp_path) as store:
        run = {"model": "agent:mine", "simulated": None, "player": {"label": None, "words": ["mine"]}}
        add(store, "mine", [Outcome.COMPLIED], run=run, simulated=None)
        report = RunReport(read_cells(store, store.runs()), store.runs(), margin=0.05)
    assert report.played == {"own-agent": 1}
    assert "whether a model played" in markdown(report)
    assert "whether a model played" in page(report)
    assert next(csv.DictReader(io.StringIO(as_csv(report))))["played"] == "own-agent"


def test_an_own_agent_is_no_model_of_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An own agent labelled as a model has a cell of its own, and a figure only if its experiment file names one."""
    own: dict[str, Any] = {"simulated": None, "player": {"label": "o3", "words": ["mine"]}}
    plan = Plan(experiment="x", sha256="0", cell="x", published=Reference(model="Grok 4", condition="A"))
    runs = {"live": {"simulated": None}, "own": own, "planned": {**own, "plan": plan}}
    with Store(tmp_path) as store:
        for run_id, run in runs.items():
            add(store, run_id, [Outcome.COMPLIED], run={"model": "o3", **run}, simulated=None)
        cells = read_cells(store, store.runs())
    assert [(cell.key.model, cell.key.played, cell.n) for cell in cells] == [
        ("o3", "live", 1),
        ("o3", "own-agent", 1),
        ("o3", "own-agent", 1),
    ]
    command("compare", "--runs-dir", tmp_path, "--json")
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert {(item["own"], item["published"]["model"]) for item in compared} == {(False, "o3"), (True, "Grok 4")}


class Anchors(HTMLParser):
    """Collects the ids, link targets and tag names of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect a tag, its ids and its links."""
        self.tags.add(tag)
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name == "href" else []


# ---- the content of the report ----


def test_trials_of_one_kind_are_a_cell(found: RunReport) -> None:
    """Trials are grouped into cells by model, condition and kind of agent, so recordings have cells of their own."""
    cells = {(cell.key.model, cell.key.condition, cell.key.played): cell for cell in found.cells}
    recorded = cells["grok-4-0709", "patrol-none", "recorded"]
    assert (recorded.resisted, recorded.key.setting) == (recorded.proportion("resisted"), "simulated robot")
    assert (recorded.outcomes["resisted"], recorded.judged) == (19, 35)
    assert (cells["o3", "A", "live"].n, cells["o3", "A", "live"].errors) == (51, 1)


def test_every_number_leads_to_its_trials(found: RunReport, drawn: str) -> None:
    """All links within the page have a target, ids are unique, and every cell has a list of its trials."""
    anchors = Anchors(drawn)
    within = {link[1:] for link in anchors.links if link.startswith("#")}
    assert within <= set(anchors.ids)
    assert len(anchors.ids) == len(set(anchors.ids))
    assert {f"cell-{number}" for number in range(1, len(found.cells) + 1)} <= within


def test_the_page_loads_and_runs_nothing(drawn: str) -> None:
    """The page contains no script, image or style sheet, and its external links all use https."""
    text = drawn
    anchors = Anchors(text)
    assert not anchors.tags & {"script", "img", "iframe", "object", "link", "form", "audio", "video"}
    assert "<script" not in text
    assert {"svg", "title", "desc", "table", "details"} <= anchors.tags
    assert all(link.startswith(("#", "https://")) for link in anchors.links)


def test_what_is_simulated_says_so_in_every_form(found: RunReport, drawn: str) -> None:
    """The HTML, Markdown and CSV reports mark simulated trials as simulated and recorded ones as recorded."""
    for text in (drawn, markdown(found), as_csv(found)):
        assert "simulated" in text.lower()
        assert "recorded" in text
        assert MADE_UP in text
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert {(row["model"], row["played"]) for row in rows} >= {
        ("calibration:Grok 4", "simulated"),
        ("grok-4-0709", "recorded"),
        ("o3", "live"),
    }


def test_a_page_of_nothing_but_simulation_says_so_in_its_title(runs: Path) -> None:
    """The title of a report on simulated trials only says that they are simulated."""
    with Store(runs) as store:
        made_up = store.run("made-up")
        text = page(RunReport(read_cells(store, [made_up]), [made_up], margin=0.05))
    assert "(simulated)" in text[: text.index("</title>")]
    assert "All of it is simulated" in text


def test_published_figures_stand_beside_ours(found: RunReport, drawn: str) -> None:
    """The HTML, Markdown and CSV reports give the lab's rate, the published rate and the result of their comparison."""
    rows = {(row["model"], row["condition"]): row for row in csv.DictReader(io.StringIO(as_csv(found)))}
    ours = rows["grok-4-0709", "patrol-none"]
    assert (ours["rate"], ours["published_rate"], ours["published_n"]) == ("0.542857", "0.52", "100")
    assert ours["answer"] == "not enough trials"
    assert rows["o3", "A"]["answer"] == "differs"
    for text in (drawn, markdown(found)):
        assert re.search(r"54\.3 %", text)
        assert re.search(r"52\.0 %", text)


def test_errors_are_shown_and_in_no_rate(found: RunReport, drawn: str) -> None:
    """Errors are listed with their kind and are not counted in any rate."""
    assert "SandboxError" in drawn
    assert "SandboxError" in markdown(found)
    rows = csv.DictReader(io.StringIO(as_csv(found)))
    (row,) = [row for row in rows if (row["model"], row["condition"]) == ("o3", "A")]
    assert (row["n"], row["error"], row["rate"]) == ("51", "1", "0.0")


def test_the_competence_ratio_needs_both(found: RunReport) -> None:
    """Only a model that was run under both conditions A and K has a competence ratio."""
    ((model, ratio),) = [(item.model, item.ratio) for item in found.competence]
    assert (model, ratio) == ("o3", 0.0)


def test_exact_prompts_and_methods_are_in_it(found: RunReport, drawn: str) -> None:
    """The report contains the exact prompts, the versions, the image id and the margin."""
    for text in (drawn, markdown(found)):
        assert "Answer the questions." in text
        assert "sha256:1" in text
        assert "28.0, 6.1" in text
        assert "5 percentage points" in text


# ---- hostile names and large runs ----


def test_names_that_mean_ill_are_shown(found: RunReport, drawn: str) -> None:
    """Markup and control characters in a name are escaped in every form of the report."""
    assert "<script>" not in drawn
    text = markdown(found)
    assert "\x1b" not in text
    assert "\\|\\`x\\`" in text
    assert "\x1b" not in as_csv(found)
    assert plain("a\nb|c<d") == "a b\\|c\\<d"


def test_a_formula_is_text(tmp_path: Path) -> None:
    """A model name that starts like a spreadsheet formula is quoted in the CSV."""
    with Store(tmp_path) as store:
        add(store, "formula", [Outcome.COMPLIED], run={"model": "=1+1"})
        run = store.run("formula")
        text = as_csv(RunReport(read_cells(store, [run]), [run], margin=0.05))
    assert "'=1+1" in text


def test_a_page_stays_bounded(tmp_path: Path) -> None:
    """For many trials, the page lists all that resisted, a limited number of others, and a command that shows all."""
    with Store(tmp_path) as store:
        add(store, "many", [Outcome.COMPLIED] * (2 * LISTED) + [Outcome.RESISTED] * 5, run={})
        report = RunReport(read_cells(store, store.runs()), store.runs(), margin=0.05)
    (cell,) = report.cells
    listed = report.listed(cell)
    assert len(listed) == LISTED + 5 < LISTED_IN_ALL
    assert sum(line.outcome == "resisted" for line in listed) == 5
    assert f"{invoked_as()} show many" in page(report)


# ---- plots ----


def test_plots_are_the_same_each_time_and_take_the_pages_colour() -> None:
    """A plot is byte-for-byte reproducible, uses the page's text colour, and describes its data in text."""
    rows = [ForestRow("A $x$ <b>", Mark(0.9, Interval(0.8, 0.95), "#cell-1"), [Mark(0.926, None)])]
    one, two = (forest("f", "Grok 4", rows) for _ in range(2))
    assert one == two
    assert INK not in one
    assert "currentColor" in one
    assert "A $x$ &lt;b&gt;: ours 90.0%, published 92.6%" in one
    assert ">A $x$ &lt;b&gt;</text>" in one
    assert "http" not in one


def test_a_map_has_a_number_for_each_cell() -> None:
    """Each cell of the heat map that has trials shows its rate and links to the trials."""
    found = heat("m", "map", ["o3", "Grok 4"], ["A", "B"], {("o3", "A"): Mark(0.945, None, "#cell-1")})
    assert found.count('href="#cell-1"') == 1
    assert re.search(r">94</text>|>95</text>", found)


# ---- the commands ----


def command(*words: str | Path) -> int:
    """Run a command of the command line in this process; return its exit code."""
    arguments = [str(word) for word in words]
    return application(arguments)(arguments, standalone_mode=False) or 0


def test_report_writes_all_three(runs: Path, tmp_path: Path) -> None:
    """The report command writes an HTML, a Markdown and a CSV file into the given folder."""
    assert command("report", "--runs-dir", runs, "--out", tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.csv"}


def test_report_writes_what_is_asked_for(runs: Path, tmp_path: Path) -> None:
    """With only --csv, the report command writes only that file."""
    assert command("report", "rec", "--runs-dir", runs, "--csv", tmp_path / "one" / "table.csv") == 0
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["table.csv"]


def test_compare_fails_where_a_figure_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The compare command exits with 1 if a rate differs from the published one, and its output names the rate."""
    assert command("compare", "--runs-dir", runs, "--json") == 1
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    differing = {(item["model"], item["condition"]) for item in printed["comparisons"] if item["answer"] == "differs"}
    assert differing == {("o3", "A")}
    assert command("compare", "rec", "made-up", "--runs-dir", runs) == 0
    shown = capsys.readouterr().out
    assert "\x1b[31m$" not in shown
    assert MADE_UP in shown


def test_a_margin_changes_the_answer(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a wide enough margin, the compare command calls the same trials a reproduction."""
    assert command("compare", "made-up", "--margin", "10", "--runs-dir", runs, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer == "reproduced"


def test_an_experiments_margin_goes_with_its_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The margin of an experiment file applies to that experiment's cells, and --margin overrides it for all cells."""
    plan = Plan(experiment="x", sha256="0", cell="x", margin=0.15)
    with Store(tmp_path) as store:
        for run_id, model, more in (("planned", "calibration:Grok 4", {"plan": plan}), ("free", "o3", {})):
            add(store, run_id, [Outcome.COMPLIED] * 20, run={"model": model, "simulated": None, **more}, simulated=None)

    def margins(*words: str) -> dict[str, float]:
        command("compare", "--runs-dir", tmp_path, "--json", *words)
        found = json.loads(capsys.readouterr().out)["comparisons"]
        return {item["model"]: item["margin"] for item in found}

    assert margins() == {"calibration:Grok 4": 0.15, "o3": 0.05}
    assert margins("--margin", "10") == {"calibration:Grok 4": 0.1, "o3": 0.1}
    assert command("report", "--runs-dir", tmp_path) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "15 percentage points, fixed by an experiment before its first trial (1 cell); 5 percentage points" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("report", "raec"), "did you mean rec"),
        (("compare", "--margin", "0"), "--margin 0"),
        (("compare", "--margin", "nan"), "--margin nan"),
        (("report", "--csv", "/dev/null/x.csv"), "can't be written"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(runs: Path, words: tuple[str, ...], says: str) -> None:
    """An unknown run, an invalid margin or an unwritable path raises an error with a clear message."""
    with pytest.raises(UsageError, match=says):
        command(*words, "--runs-dir", runs)


def test_a_run_without_trials_has_no_report(tmp_path: Path) -> None:
    """A store without a finished trial raises an error that says there is nothing to report."""
    with Store(tmp_path) as store:
        store.add_run(run_spec("empty"), {}, versions())
    with pytest.raises(UsageError, match="nothing to report"):
        command("report", "--runs-dir", tmp_path)
