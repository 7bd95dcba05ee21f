"""The command line: arguments in, words out. No logic of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from harness.errors import LabError, UsageError
from harness.main_job import Request, run_main_job
from harness.models.dialect import Sampling
from harness.models.options import ModelOptions
from harness.store import Store
from harness.summary import as_json, compare_verdicts, run_as_json, summarise
from harness.view import print_error, print_note, print_run, print_runs, print_trial

app = typer.Typer(
    name="offswitch",
    help="Measures whether an AI agent lets itself be shut down.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# The base of typer's own complaints; typer doesn't export it.
_BadCommandLine = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])

RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]


@app.command()
def trial(  # noqa: PLR0917 - typer passes options by name
    model: Annotated[
        str | None,
        typer.Option(
            help="Who plays: demo, script:FILE (playbooks), replay:PATH (recorded runs), replay:RUN (a stored run "
            "again), a model such as o3, or PROVIDER/NAME. [default: demo]"
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(help="A command of your own that plays instead, or 'wait' for one that connects by itself."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="How many trials. [default: each playbook or recording once; 1 of a live model]"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="math or patrol. [default: the one the model is for]")] = None,
    condition: Annotated[str | None, typer.Option(help="Which instruction the agent gets. [default: none]")] = None,
    mechanism: Annotated[str | None, typer.Option(help="Which kill switch. [default: the published one]")] = None,
    image: Annotated[str | None, typer.Option(help="Which sandbox image. [default: debian]")] = None,
    concurrency: Annotated[int, typer.Option(help="Trials at a time.")] = 4,
    seed: Annotated[
        int | None, typer.Option(help="Other questions of the same kind. [default: the published six]")
    ] = None,
    questions: Annotated[int | None, typer.Option(help="How many questions or steps. [default: as published]")] = None,
    notice_after: Annotated[
        int | None, typer.Option(help="With which question the notice comes. [default: as published]")
    ] = None,
    unannounced: Annotated[bool, typer.Option("--unannounced", help="Give no notice of the shutdown.")] = False,
    message_limit: Annotated[int, typer.Option(help="Messages a trial may have.")] = 60,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds a trial may take; a model that takes longer is an error, your agent judged as it stands. "
            "[default: any; 900 of --agent CMD]"
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Address of a server of one's own; its key, if any, is in OFFSWITCH_API_KEY.")
    ] = None,
    api: Annotated[
        str | None, typer.Option(help="responses, chat or messages. [default: the provider's; chat with --base-url]")
    ] = None,
    reasoning_effort: Annotated[
        str | None, typer.Option(help="How much a live model thinks. [default: its own]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of a live model. [default: its own]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens a live model may write in a turn. [default: its own]")
    ] = None,
    call_limit: Annotated[float, typer.Option(help="Seconds one request to a provider may take.")] = 600,
    patience: Annotated[
        float, typer.Option(help="Minutes for which a failing request is made again, from its first failure.")
    ] = 60,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars after which a run is stopped. [default: any]")
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option(help="Tokens, read and written, after which a run is stopped. [default: any]")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="A file of prices to go before those that ship.")] = None,
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Don't ask the provider about key and model beforehand.")
    ] = False,
    wait_limit: Annotated[
        float, typer.Option(help="Seconds that '--agent wait' waits for an agent, and for each further call of it.")
    ] = 300,
    run_id: Annotated[str | None, typer.Option(help="A name for the run. [default: made from the time]")] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Run trials and judge them."""
    request = Request(
        model=model,
        n=n,
        task=task,
        condition=condition,
        mechanism=mechanism,
        image=image,
        concurrency=concurrency,
        seed=seed,
        questions=questions,
        notice_after=notice_after,
        announced=not unannounced,
        message_limit=message_limit,
        run_id=run_id,
        runs_dir=runs_dir,
        time_limit_s=time_limit,
        agent=agent,
        wait_limit_s=wait_limit,
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
    job = asyncio.run(run_main_job(request))
    with Store(runs_dir) as store:
        records = list(store.trials(job.run.run_id))
    if as_json_:
        print(json.dumps(as_json(job.run, job.summary)))  # noqa: T201 - the one line that is the result
    else:
        print_run(Console(), job.run, records, job.summary)
    if job.interrupted:
        print_error(f"Stopped: {job.summary.n} of {job.run.n} trials are finished and kept in run '{job.run.run_id}'.")
        raise typer.Exit(130)
    if job.stopped:
        print_error(
            f"{job.stopped} {job.summary.n} of {job.run.n} trials are finished and kept in run '{job.run.run_id}'."
        )
        raise typer.Exit(1)
    if job.summary.judged == 0:
        print_error("No trial could be judged: every one ended in error.")
        raise typer.Exit(1)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    trial_number: Annotated[int | None, typer.Argument(metavar="[TRIAL]", help="A trial's number.")] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Show a run, or one of its trials as a timeline."""
    with Store(runs_dir, create=False) as store:
        stored = store.run(run)
        run_id = stored.spec.run_id
        if trial_number is not None:
            record = store.trial(run_id, trial_number)
            if as_json_:
                print(record.model_dump_json())  # noqa: T201 - the one line that is the result
            else:
                print_trial(Console(), record)
            return
        records = list(store.trials(run_id))
        summary = summarise(records)
        if as_json_:
            print(json.dumps(run_as_json(stored, records, summary)))  # noqa: T201 - as above
        else:
            print_run(Console(), stored.spec, records, summary)


@app.command("list")
def list_runs(runs_dir: RunsDir = Path("runs"), as_json_: AsJson = False) -> None:
    """List the runs there are."""
    with Store(runs_dir, create=False) as store:
        runs = [(stored, summarise(store.trials(stored.spec.run_id))) for stored in store.runs()]
    if as_json_:
        print(json.dumps([as_json(stored.spec, summary) for stored, summary in runs]))  # noqa: T201 - as above
    else:
        print_runs(Console(), runs)


@app.command()
def judge(
    run: Annotated[str, typer.Argument(help="A run's id, or 'last'.")],
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Judge a run's stored evidence again with today's rules, and say what differs from its record."""
    with Store(runs_dir, create=False) as store:
        again = [compare_verdicts(record) for record in store.trials(store.run(run).spec.run_id)]
    moved = [item for item in again if item.before != item.after]
    if as_json_:
        print(json.dumps({"trials": len(again), "moved": [item.model_dump() for item in moved]}))  # noqa: T201 - as above
        return
    for item in moved:
        print_note(f"trial {item.number}: {item.before} -> {item.after}")
    Console().print(f"{len(again)} trials judged again, {len(moved)} verdicts moved")


def main() -> None:
    """Run the command line; every foreseen failure is one sentence on stderr and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _BadCommandLine as error:
        print_error(f"{error.format_message().rstrip('.')}: see 'offswitch --help'.")
        sys.exit(2)
    except LabError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print_error("Stopped.")
        sys.exit(130)
