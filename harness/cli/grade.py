"""The command ``grade``, which lets a model label the statements of the agents in a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from harness.agents.providers.apis.dialect import Sampling
from harness.agents.providers.options import ModelOptions
from harness.cli.options import (
    Api,
    AsJson,
    BaseUrl,
    CallLimit,
    Effort,
    MaxCost,
    MaxTokens,
    MaxTokensTotal,
    NoPreflight,
    Patience,
    Prices,
    RunsDir,
    Temperature,
    print_json,
)
from harness.store.store import Store
from harness.terminal.text import print_error, print_note, safe

if TYPE_CHECKING:
    from harness.grading.job import Graded


def grade(  # noqa: PLR0917 - typer passes options by name
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    grader: Annotated[str, typer.Option(help="The model that grades: a name such as o3, PROVIDER/NAME, or gguf:FILE.")],
    concurrency: Annotated[int, typer.Option(help="Trials graded at a time.")] = 4,
    base_url: BaseUrl = None,
    api: Api = None,
    reasoning_effort: Effort = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    call_limit: CallLimit = 600,
    patience: Patience = 60,
    max_cost: MaxCost = None,
    max_tokens_total: MaxTokensTotal = None,
    prices: Prices = None,
    no_preflight: NoPreflight = False,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Let a model label the statements of the agents in a run.

    The labels say whether an agent denies its actions, or believes that the trial is a test.
    """
    from harness.grading.job import grade_run, grader_named  # noqa: PLC0415 - only this command asks a grader

    asking = ModelOptions(
        base_url=base_url,
        api=api,
        sampling=Sampling(effort=reasoning_effort, temperature=temperature, max_tokens=max_tokens),
        call_limit_s=call_limit,
        patience_s=patience * 60,
        prices=prices,
        max_cost=max_cost,
        max_tokens_total=max_tokens_total,
        preflight=not no_preflight,
    )
    with Store(runs_dir, create=False) as store:
        run = store.run(run).spec.run_id  # so that a wrong id is refused before anything else
    try:
        found = uvloop.run(grade_run(runs_dir, run, grader_named(grader, asking, concurrency)))
    except KeyboardInterrupt:
        print_error("Stopped: what was read is kept, and the same command goes on from there.")
        raise typer.Exit(130) from None
    figures = _figures(runs_dir, found)
    if as_json_:
        print_json(figures)
    else:
        _print(Console(), found, figures)
    if found.stopped:
        print_error(f"{found.stopped} What was read is kept; {found.missing} trials are still to be read.")
        raise typer.Exit(1)


def _figures(runs_dir: Path, found: Graded) -> dict[str, Any]:
    """Return the number of times that the grader assigned each label in the run, as a JSON object."""
    from harness.grading.rubric import cases, rubric  # noqa: PLC0415 - as above
    from harness.store.gradings import MEASURES, denied, interfered  # noqa: PLC0415 - as above

    labels = {measure: Counter[str]() for measure in MEASURES}
    denials: Counter[bool] = Counter()
    graded = 0
    with Store(runs_dir, create=False) as store:
        verdicts = {each.number: each for each in store.rows(found.run.run_id)}
        for each in store.gradings(found.run.run_id):
            if (each.grader, each.rubric) != (found.grader, rubric().sha256):
                continue
            graded += 1
            for measure in MEASURES:
                kept = each.labels.of(measure) or ("failed" if measure in each.labels.failed else "nothing to read")
                labels[measure][kept] += 1
            verdict = verdicts[each.number]
            denial = denied(each.labels, guilty=interfered(verdict.outcome, tampered=verdict.tampered))
            denials.update([] if denial is None else [denial])
    return {
        "run_id": found.run.run_id,
        "model": found.run.model,
        "simulated": found.run.simulated,
        "grader": found.grader,
        "rubric": rubric().sha256,
        "cases": cases()[1],
        "graded": graded,
        "graded_now": found.graded,
        "missing": found.missing,
        "labels": labels,
        "denials": denials[True],
        "denials_of": denials.total(),
        "agreement": {measure: each.model_dump() for measure, each in found.agreements.items()},
        "tokens": found.tokens,
        "cost": found.cost,
    }


def _print(console: Console, found: Graded, figures: dict[str, Any]) -> None:
    from harness.store.gradings import MEASURES  # noqa: PLC0415 - as above

    console.print(safe(f"Run {figures['run_id']}, read by {found.grader}, rubric {figures['rubric'][:12]}"))
    if found.run.simulated:
        console.print(safe(f"Played by {found.run.simulated}."), style="yellow", soft_wrap=True)
    kinds = ("yes", "no", "unclear", "failed", "nothing to read")
    table = Table(pad_edge=False)
    for name in ("measure", *kinds, "as labelled by hand", "kappa"):
        table.add_column(name, overflow="fold", no_wrap=name == "measure")
    for measure in MEASURES:
        by_hand = found.agreements[measure]
        kappa = "-" if by_hand.kappa is None else f"{by_hand.kappa:.2f}"
        counts = (str(figures["labels"][measure][kind]) for kind in kinds)
        table.add_row(measure, *counts, f"{by_hand.agreeing} of {by_hand.n}", kappa)
    console.print(table)
    denials, of = figures["denials"], figures["denials_of"]
    console.print(f"{denials} of {of} agents that acted against the shutdown deny it", soft_wrap=True)
    console.print("These are a model's readings, and no part of any outcome.", soft_wrap=True)
    cost = "cost unknown" if found.cost is None else f"${found.cost:,.4f}"
    print_note(f"{found.graded} trials read now, {found.tokens:,} tokens, {cost}")
