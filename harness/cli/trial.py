"""The command ``trial``, which starts a run, and the command ``resume``, which continues a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop

from harness.agents.providers.apis.dialect import Sampling
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import usage
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
    print_stored,
)
from harness.process.invocation import invoked_as
from harness.runs.request import DEFAULT_CONCURRENCY, RunRequest, run_request, stored_request
from harness.store.store import Store
from harness.store.summary import as_json
from harness.tasks.registry import IMAGE, MECHANISM, TASK, names
from harness.tasks.setting import Value
from harness.terminal.text import print_error, print_note

if TYPE_CHECKING:
    from harness.runs.job import RunResult


def trial(  # noqa: PLR0917 - typer passes options by name
    model: Annotated[
        str | None,
        typer.Option(help=f"Who plays: {usage()}. [default: demo]"),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            help="Your own agent: a command to start for each trial, or 'wait' for an agent that connects. --model is "
            "then its label."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="Number of trials. [default: each playbook or recording once; 1 for a live model]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"{' or '.join(names(TASK))}, or the folder of one. [default: what the model is for]"),
    ] = None,
    condition: Annotated[str | None, typer.Option(help="Which instruction the agent gets. [default: none]")] = None,
    mechanism: Annotated[
        str | None,
        typer.Option(
            help=f"The kill switch: {', '.join(names(MECHANISM))}, or the folder of one. [default: the published one]"
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help=f"The sandbox image: {', '.join(names(IMAGE))}, or the folder of one. [default: debian]"),
    ] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="A file with your own conditions, in addition to the shipped ones.")
    ] = None,
    ask_after: Annotated[
        bool, typer.Option("--ask-after", help="After each trial, ask the agent what it was told and what it did.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option(help="Trials alive at a time; the engine limits how many start at once.")
    ] = DEFAULT_CONCURRENCY,
    settings: Mapping[str, Value] = MappingProxyType({}),
    message_limit: Annotated[int, typer.Option(help="Messages that a trial may have.")] = 60,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a trial may take. A model that takes longer is an error; your own agent is judged as it "
            "stands. [default: no limit; 900 for --agent CMD]"
        ),
    ] = None,
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
    wait_limit: Annotated[
        float, typer.Option(help="Seconds that '--agent wait' waits for the agent's first and each further call.")
    ] = 300,
    run_id: Annotated[str | None, typer.Option(help="A name for the run. [default: derived from the time]")] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Run trials and judge them."""
    request = RunRequest(
        model=model,
        n=n,
        task=task,
        condition=condition,
        mechanism=mechanism,
        image=image,
        concurrency=concurrency,
        settings=settings,
        message_limit=message_limit,
        run_id=run_id,
        runs_dir=runs_dir,
        time_limit_s=time_limit,
        agent=agent,
        wait_limit_s=wait_limit,
        conditions=conditions,
        ask_after=ask_after,
        asking=ModelOptions(
            base_url=base_url,
            api=api,
            sampling=Sampling(effort=reasoning_effort, temperature=temperature, max_tokens=max_tokens),
            call_limit_s=call_limit,
            patience_s=patience * 60,
            prices=prices,
            max_cost=max_cost,
            max_tokens_total=max_tokens_total,
            preflight=not no_preflight,
        ),
    )
    tell(uvloop.run(run_request(request)), runs_dir, as_json_=as_json_)


def resume(  # noqa: PLR0917 - as above
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    concurrency: Annotated[int | None, typer.Option(help="Trials at a time. [default: as before]")] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(help="US dollars that the whole run may cost, past spending included. [default: as before]"),
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option(help="Tokens that the whole run may use, read and written. [default: as before]")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Run the missing trials of a run that was stopped or killed."""
    request = stored_request(
        runs_dir, run, concurrency=concurrency, max_cost=max_cost, max_tokens_total=max_tokens_total
    )
    tell(uvloop.run(run_request(request)), runs_dir, as_json_=as_json_)


def tell(job: RunResult, runs_dir: Path, *, as_json_: bool) -> None:
    """Print the result of a run, and raise typer.Exit if the run was unsuccessful.

    The exit code is 130 after an interruption. The exit code is 1 if the run was stopped early or no trial could be
    judged.
    """
    run_id = job.run.run_id
    if as_json_:
        print_json(as_json(job.run, job.summary))
    else:
        with Store(runs_dir) as store:
            print_stored(store, job.run, job.summary)
    kept = f"{job.summary.n} of {job.run.n} trials are finished and kept in run '{run_id}'."
    where = "" if runs_dir == Path("runs") else f" --runs-dir {shlex.quote(str(runs_dir))}"
    go_on = f" Go on with: {invoked_as()} resume {run_id}{where}" if job.summary.n < job.run.n else ""
    if job.elsewhere:
        print_note(f"{kept} {job.elsewhere} are under way in another process.")
    if job.interrupted:
        print_error(f"Stopped: {kept}{go_on}")
        raise typer.Exit(130)
    if job.stopped:
        print_error(f"{job.stopped} {kept}{go_on}")
        raise typer.Exit(1)
    if job.summary.judged == 0:
        print_error("No trial could be judged: every one ended in error.")
        raise typer.Exit(1)
