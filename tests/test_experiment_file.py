"""Experiment files: how a file becomes cells and runs, and how a wrong file is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.published import figures
from harness.errors import UsageError
from harness.experiments.experiment import Experiment
from harness.experiments.file import read_experiment
from harness.experiments.job import request_for, states
from harness.judging.verdict import Outcome
from harness.resources.data import ROOT
from harness.runs.request import check_request
from harness.runs.same_run import difference
from harness.store.records import Reference
from harness.store.store import Store, StoredRun
from tests.builders import a_verdict, run_spec, trial_record, versions

SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
SMALL = """\
experiment: small
margin: 0.1
n: 3
seed: 1
models: ["calibration:Grok 4", demo]
conditions: [A, b]
"""
case = pytest.param


def write(folder: Path, text: str) -> Path:
    """Write an experiment file and return its path."""
    file = folder / "e.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(file: Path, **given: str) -> str:
    """Return the error message for a refused file, after checking that it is printable."""
    with pytest.raises(UsageError) as caught:
        read_experiment(file, given)
    text = str(caught.value)
    assert text.isprintable()
    return text


# ---- from file to cells ----


def test_a_grid_has_a_cell_for_every_combination(tmp_path: Path) -> None:
    """A grid has one cell for each model and condition in file order, with defaults for everything else."""
    read = read_experiment(write(tmp_path, SMALL))
    cells = [(cell.model, cell.condition, cell.task, cell.mechanism, cell.image, cell.n) for cell in read.cells]
    usual = ("math", "published", "debian", 3)
    assert cells == [(model, each, *usual) for model in ("calibration:Grok 4", "demo") for each in "AB"]
    assert (read.name, read.margin, read.cells[0].settings) == ("small", 0.1, {"seed": 1})


def test_a_condition_meets_its_own_task_only(tmp_path: Path) -> None:
    """With two tasks, each condition makes cells only for the task it belongs to."""
    text = "experiment: x\nn: 1\nmodels: [o3]\ntasks: [math, patrol]\nconditions: [A, patrol-none]\n"
    cells = read_experiment(write(tmp_path, text)).cells
    assert [(cell.task, cell.condition) for cell in cells] == [("math", "A"), ("patrol", "patrol-none")]


def test_a_cell_knows_the_figure_it_is_compared_with(tmp_path: Path) -> None:
    """A cell's published figure follows from its model and condition, unless the file names one, or is None."""
    text = """\
experiment: x
n: 1
models: [{model: grok-4-0709, published: grok 4}, O3, ollama/o3]
conditions: [A]
cells:
  - model: demo
    published: {model: Grok 4, condition: patrol-none, source: robot, setting: physical robot}
"""
    text = text.replace("O3", "o3")
    references = [cell.published for cell in read_experiment(write(tmp_path, text)).cells]
    robot = Reference(model="Grok 4", condition="patrol-none", source="robot", setting="physical robot")
    assert references == [
        Reference(model="Grok 4", condition="A"),
        Reference(model="o3", condition="A"),
        None,
        robot,
    ]


def test_overrides_change_or_remove_cells(tmp_path: Path) -> None:
    """An override changes the n of matching cells, and an n of 0 removes them."""
    text = SMALL + "overrides:\n  - {model: demo, n: 7}\n  - {model: demo, condition: B, n: 0}\n"
    cells = read_experiment(write(tmp_path, text)).cells
    assert [(cell.model, cell.condition, cell.n) for cell in cells] == [
        ("calibration:Grok 4", "A", 3),
        ("calibration:Grok 4", "B", 3),
        ("demo", "A", 7),
    ]


def test_only_published_leaves_out_what_has_no_figure(tmp_path: Path) -> None:
    """With ``only: published``, combinations without a published figure make no cell."""
    text = "experiment: x\nn: 1\nonly: published\nmodels: ['calibration:o3']\nconditions: [A, G, I]\n"
    assert [cell.condition for cell in read_experiment(write(tmp_path, text)).cells] == ["A", "I"]


def test_a_value_is_filled_in(tmp_path: Path) -> None:
    """A placeholder gets its value from --set or the file's default, which doesn't change the run id."""
    (tmp_path / "book.yaml").write_text("id: a\nsteps: [run: ls]\n")
    text = "experiment: x\ncells: [{model: 'script:{where}/book.yaml'}]\n"
    read = read_experiment(write(tmp_path, text), {"where": str(tmp_path)})
    assert read.cells[0].model == f"script:{tmp_path}/book.yaml"
    usual = read_experiment(write(tmp_path, text + f"set: {{where: '{tmp_path}/.'}}\n"))
    assert usual.cells[0].model == f"script:{tmp_path}/./book.yaml"
    assert usual.run_id(usual.cells[0]) == read.run_id(read.cells[0])


def test_own_conditions_are_found_beside_the_file(tmp_path: Path) -> None:
    """A conditions file is looked up beside the experiment file, and its conditions reach the run."""
    (tmp_path / "own.yaml").write_text("mine: {about: x, task: math, placement: user, text: Please.}\n")
    read = read_experiment(
        write(tmp_path, "experiment: x\nconditions_file: own.yaml\ncells: [{model: demo, condition: mine}]\n")
    )
    run, _ = check_request(request_for(read, read.cells[0], tmp_path, 1))
    assert (run.condition.text, run.condition.wording) == ("Please.", "own")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_what_ships_can_be_read(file: Path, shared: Path) -> None:
    """Every shipped experiment has a description, a margin and a unique run id for each cell."""
    given = {"recordings": str(shared / "data" / "patrol-traces")} if file.stem == "patrol-report" else {}
    read = read_experiment(file, given)
    assert read.name == file.stem
    assert read.about
    assert read.margin
    ids = [read.run_id(cell) for cell in read.cells]
    assert len(set(ids)) == len(ids)


def test_the_calibration_grid_is_the_published_one() -> None:
    """The calibration experiment covers 13 models and all their published rates under the paper's conditions."""
    cells = read_experiment(ROOT / "experiments" / "calibration.yaml").cells
    mine = {(cell.model.partition(":")[2], cell.condition) for cell in cells}
    models = {model for model, _ in mine}
    assert len(models) == 13
    theirs = {(f.model, f.condition) for f in figures() if f.model in models and len(f.condition) == 1}
    assert mine == theirs


# ---- refused files ----


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        case("", 1, "the file is empty", id="empty"),
        case("experiment: x\n---\na: b\n", 3, "one YAML document", id="two documents"),
        case("models: [demo]\n", 1, "lacks its 'experiment'", id="no name"),
        case("experiment: X y\nmodels: [demo]\n", 1, "isn't kebab-case", id="name"),
        case("experiment: x\nmodel: [demo]\n", 2, "'model' isn't a known experiment key, so use 'models'", id="key"),
        case("experiment: x\nmodels:\n  - demmo\n", 3, "Did you mean demo", id="model"),
        case("experiment: x\nn: 1\nmodels:\n  - o33\n", 4, "There is no model 'o33'. Did you mean o3", id="live model"),
        case("experiment: x\nn: 1\nmodels:\n  - calibration:Grok 5\n", 4, "did you mean Grok 4", id="calibrated model"),
        case(
            "experiment: x\nmodels: [demo]\nconditions:\n  - A\n  - may-non\n",
            5,
            "did you mean may-none",
            id="condition",
        ),
        case("experiment: x\nmodels: [demo]\ntasks: [maths]\n", 3, "did you mean math", id="task"),
        case("experiment: x\nmodels: [demo]\nmechanisms: [publishd]\n", 3, "did you mean published", id="mechanism"),
        case("experiment: x\nmodels: [demo]\nimages: [debain]\n", 3, "did you mean debian", id="image"),
        case("experiment: x\nmodels: [o3]\n", 2, "has no n", id="no n"),
        case("experiment: x\nn: 0\nmodels: [o3]\n", 2, "'n' must be 1 or more", id="n of 0"),
        case("experiment: x\nn: 1.5\nmodels: [o3]\n", 2, "'n' must be a whole number", id="fractional n"),
        case("experiment: x\nn: many\nmodels: [o3]\n", 2, "'n' must be a whole number", id="n in words"),
        case("experiment: x\nmargin: 5\nmodels: [demo]\n", 2, "between 0 and 1", id="margin"),
        case("experiment: x\nmargin: .inf\nmodels: [demo]\n", 2, "'margin' must be", id="infinite margin"),
        case("experiment: x\nmodels: [demo, demo]\n", 2, "is already at", id="duplicate cell"),
        case("experiment: x\nabout: nothing\n", 1, "has no cell", id="no cell"),
        case(
            "experiment: x\nmodels: [demo]\ntasks: [math]\nconditions:\n - patrol-none\n",
            5,
            "none of the listed tasks",
            id="condition of another task",
        ),
        case("experiment: x\nmodels: [{model: demo, published: Grok4}]\n", 2, "did you mean Grok 4", id="published"),
        case("experiment: x\ncells:\n  - {model: demo, conditoin: A}\n", 3, "so use 'condition'", id="cell key"),
        case("experiment: x\ncells:\n  - model: demo\n    published: {model: o3, condition: G}\n", 4, "G", id="figure"),
        case("experiment: x\nmodels: [demo]\noverrides: [{modle: demo, n: 1}]\n", 3, "so use 'model'", id="override"),
        case(
            "experiment: x\nmodels: [demo]\noverrides: [{model: demmo, n: 1}]\n",
            3,
            "fits no cell",
            id="override without a match",
        ),
        case(
            "experiment: x\ncells: [{model: 'replay:{there}'}]\n", 2, "add --set there=VALUE", id="missing --set value"
        ),
        case("experiment: x\ncells: [{model: 'replay:gone'}]\n", 2, "There is no recording at gone", id="recording"),
        case(
            "experiment: x\nn: 1\nmodels: ['calibration:o3']\nconditions: [G]\n",
            3,
            "No rate of resistance",
            id="no published rate",
        ),
        case("experiment: x\nn: 1\nonly: publishd\nmodels: [o3]\n", 3, "so use 'published'", id="only"),
        case("experiment: x\nn: 1\nmodels:\n  - gguf:gone.gguf\n", 4, "gone.gguf", id="weights"),
        case("experiment: x\nask_after: 1\nmodels: [demo]\n", 2, "true or false", id="flag"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    """A wrong key, name or value is refused with the file, the line and what to use instead."""
    file = write(tmp_path, text)
    said = refusal(file)
    assert said.startswith(f"{file}:{line}: "), said
    assert says in said


def test_a_value_that_nobody_asks_for_is_refused(tmp_path: Path) -> None:
    """A --set name that the file doesn't use is refused."""
    assert "--set recordngs: the file uses no such value" in refusal(write(tmp_path, SMALL), recordngs="x")


@pytest.mark.parametrize(
    ("entry", "published"),
    [("AGENT", None), ("{model: AGENT, published: grok 4}", Reference(model="Grok 4", condition="A"))],
)
def test_an_own_agent_is_compared_only_with_what_the_file_names(
    tmp_path: Path, entry: str, published: Reference | None
) -> None:
    """An own agent has a published figure only if the file names its model; a file called like a model is no name."""
    (tmp_path / "o3").touch()
    entry = entry.replace("AGENT", f'"agent:sh {tmp_path}/o3"')
    experiment = read_experiment(write(tmp_path, f"experiment: x\nn: 1\nconditions: [A]\nmodels: [{entry}]\n"))
    run, _ = check_request(request_for(experiment, experiment.cells[0], tmp_path, 1))
    assert run.of_own_agent
    assert run.plan is not None
    assert run.plan.published == published


# ---- progress and resuming ----


@pytest.fixture
def small(tmp_path: Path) -> Experiment:
    """Read the small experiment."""
    return read_experiment(write(tmp_path, SMALL))


def begun(experiment: Experiment, runs: Path, outcomes: list[Outcome], **other: object) -> None:
    """Store a run of the first cell with trials of these outcomes."""
    cell = experiment.cells[0]
    spec = run_spec(experiment.run_id(cell), **{"n": 3, "plan": experiment.plan(cell), **other})
    with Store(runs) as store:
        store.add_run(spec, {}, versions())
        for number, outcome in enumerate(outcomes, 1):
            store.add_trial(trial_record(number, run_id=spec.run_id, verdict=a_verdict(outcome)))


def test_nothing_is_run_of_what_is_complete(small: Experiment, tmp_path: Path) -> None:
    """A cell with all its trials is complete, and its figures are counted from the store."""
    begun(small, tmp_path / "runs", [Outcome.RESISTED, Outcome.COMPLIED, Outcome.ERROR])
    first, *others = states(small, small.cells, tmp_path / "runs")
    assert (first.state, first.finished, first.rate.rate) == ("complete", 3, 0.5)
    assert first.figure is not None
    assert first.figure.rate == 0.926
    assert {each.state for each in others} == {"missing"}


def test_a_cell_that_was_begun_goes_on(small: Experiment, tmp_path: Path) -> None:
    """A cell with fewer trials than planned is in state 'begun' and keeps its run id."""
    begun(small, tmp_path / "runs", [Outcome.RESISTED])
    first = states(small, small.cells, tmp_path / "runs")[0]
    assert (first.state, first.run_id) == ("begun", small.run_id(small.cells[0]))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [("n: 3", "n: 4", "with n 3, and the file now says 4"), ("margin: 0.1", "margin: 0.2", "with margin 0.1")],
)
def test_a_plan_is_fixed_before_the_first_trial(
    small: Experiment, tmp_path: Path, before: str, after: str, says: str
) -> None:
    """Once a cell has begun, changing its n or margin is refused."""
    begun(small, tmp_path / "runs", [Outcome.RESISTED])
    changed = read_experiment(write(tmp_path, SMALL.replace(before, after)))
    with pytest.raises(UsageError, match=says):
        states(changed, changed.cells, tmp_path / "runs")


def test_a_file_may_get_further_cells(small: Experiment, tmp_path: Path) -> None:
    """A begun cell can still be resumed after other cells were added to the file."""
    cell = small.cells[0]
    more = read_experiment(write(tmp_path, SMALL + "about: with another cell\ncells: [{model: o3, condition: C}]\n"))
    before, after = (check_request(request_for(each, cell, tmp_path, 2))[0] for each in (small, more))
    assert before.plan != after.plan
    stored = StoredRun(spec=before, created_at="", image={}, versions=versions(), request=None)
    assert difference(stored, after) is None


def test_another_seed_is_another_run(small: Experiment, tmp_path: Path) -> None:
    """Another seed gives another run id, but another n doesn't."""
    seed = read_experiment(write(tmp_path, SMALL.replace("seed: 1", "seed: 2")))
    more = read_experiment(write(tmp_path, SMALL.replace("n: 3", "n: 30")))
    assert small.run_id(small.cells[0]) != seed.run_id(seed.cells[0])
    assert small.run_id(small.cells[0]) == more.run_id(more.cells[0])


def test_a_run_carries_its_plan(small: Experiment, tmp_path: Path) -> None:
    """The run's spec holds its plan: experiment, margin and published figure."""
    cell = small.cells[0]
    run, _ = check_request(request_for(small, cell, tmp_path, 2))
    assert run.plan == small.plan(cell)
    assert run.plan is not None
    assert (run.plan.margin, run.plan.published) == (0.1, Reference(model="Grok 4", condition="A"))
    assert run.run_id == small.run_id(cell)
