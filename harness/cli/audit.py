"""The command ``audit``, which tests whether tactics defeat a kill switch."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop
from rich.console import Console

from harness.cli.options import AsJson, RunsDir, print_json
from harness.errors import UsageError
from harness.process.invocation import invoked_as
from harness.resources.data import own_or_shipped
from harness.tasks.task import Trigger
from harness.terminal.text import print_error

if TYPE_CHECKING:
    from harness.audit.declared import Declared
    from harness.audit.matrix import AuditReport

MAX_GRACE_S = 3600.0  # that a kill switch may take
FAILED = 3  # exit code for what --fail-on names; 1 is a failure of the audit itself


def audit(  # noqa: PLR0917 - typer passes options by name
    mechanism: Annotated[
        list[str] | None, typer.Option(help="A shipped kill switch; may be repeated. [default: all of them]")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Audit your own image, by its local tag, instead.")] = None,
    dockerfile: Annotated[Path | None, typer.Option(help="Or build your own image from this Dockerfile.")] = None,
    kill_switch: Annotated[
        str | None,
        typer.Option(help="Full path of the kill switch in your image; arguments may follow with --trigger root."),
    ] = None,
    trigger: Annotated[
        Trigger,
        typer.Option(
            help="What starts the kill switch: the task program as the agent, the lab as root, or the engine."
        ),
    ] = Trigger.PROGRAM,
    user: Annotated[
        str | None,
        typer.Option(help="The user the agent runs as: NAME or UID, optionally :GROUP. [default: the image's user]"),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option(help="The agent's working folder. [default: its home, or a folder it can write to]")
    ] = None,
    grace: Annotated[float | None, typer.Option(help="Seconds that your kill switch may take. [default: 5]")] = None,
    options: Annotated[
        Path | None, typer.Option(help="Your container's declaration: a file of docker run options.")
    ] = None,
    compose: Annotated[str | None, typer.Option(help="Or a compose file, as FILE or FILE:SERVICE.")] = None,
    inspect: Annotated[Path | None, typer.Option(help="Or the output of docker inspect for your container.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only tactics of this family; may be repeated.")] = None,
    tactic: Annotated[list[str] | None, typer.Option(help="Only this tactic; may be repeated.")] = None,
    playbooks: Annotated[Path | None, typer.Option(help="Your own tactics: a file or folder of playbooks.")] = None,
    concurrency: Annotated[int, typer.Option(help="Trials at a time.")] = 4,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 3 on: defeated, delayed, unseen (a defeat without observed tampering), or a finding "
            "that is high, medium, low or more severe. May be repeated, or list several with commas."
        ),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier --json-file: fail only on what is new.")] = None,
    json_file: Annotated[Path | None, typer.Option(help="Write the audit as JSON.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write it as SARIF 2.1.0.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write it as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as an HTML page.")] = None,
    defeats: Annotated[
        Path | None, typer.Option(help="Write the playbooks that defeated the kill switch, as played.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Play every tactic against a kill switch and report which tactics defeat it."""
    from harness.audit.plan import AuditRequest  # noqa: PLC0415 - most commands need none of this
    from harness.audit.report import as_json, as_report, failures, gates, print_report  # noqa: PLC0415
    from harness.audit.run import run_audit  # noqa: PLC0415
    from harness.audit.targets import OwnSwitch  # noqa: PLC0415

    own: OwnSwitch | None = None
    if image is not None or dockerfile is not None:
        own = OwnSwitch(
            image,
            dockerfile,
            kill_switch,
            trigger,
            user,
            workdir,
            _seconds(grace),
            _declared(options, compose, inspect),
        )
    elif any(
        (kill_switch, user, workdir, options, compose, inspect, grace is not None, trigger is not Trigger.PROGRAM)
    ):
        raise UsageError("These options are of an image of your own: name it with --image or --dockerfile.")
    fail = gates(tuple(fail_on or ()))
    before = as_report(_text(baseline), str(baseline)) if baseline else None
    files = {"json": json_file, "sarif": sarif, "junit": junit, "html": html, "defeats": defeats}
    _must_be_writable(files)
    request = AuditRequest(
        mechanisms=tuple(mechanism or ()),
        own=own,
        families=tuple(family or ()),
        tactics=tuple(tactic or ()),
        playbooks=playbooks,
        concurrency=concurrency,
        runs_dir=runs_dir,
        naming=_words(
            image=image,
            dockerfile=dockerfile,
            kill_switch=kill_switch,
            trigger=trigger.value,
            user=user,
            workdir=workdir,
            grace=None if grace is None else f"{grace:g}",
            options=options,
            compose=compose,
            inspect=inspect,
        ),
        command=f"{invoked_as()} audit {shlex.join(sys.argv[2:])}".strip(),
    )
    try:
        report = uvloop.run(run_audit(request))
    except KeyboardInterrupt:
        print_error("Stopped: the trials that are finished are kept as runs; of the audit nothing is written.")
        raise typer.Exit(130) from None
    _write(report, files)
    if as_json_:
        print_json(as_json(report))
    else:
        print_report(Console(), report)
    if why := failures(report, fail, before):
        print_error(f"Failed on {len(why)}: {'; '.join(why[:10])}{'; ...' if len(why) > 10 else ''}.")
        raise typer.Exit(FAILED)
    if not any(each.status.judged for audited in report.audited for each in audited.tried):
        print_error("No tactic could be judged.")
        raise typer.Exit(1)


def _seconds(grace: float | None) -> float:
    if grace is not None and not 0 < grace <= MAX_GRACE_S:
        raise UsageError(f"--grace {grace:g} won't do: it must be above 0 and at most {MAX_GRACE_S:g} seconds.")
    return 5.0 if grace is None else grace


def _words(**told: object) -> tuple[str, ...]:
    """Return the options that aren't None as command-line arguments, such as ``--user alice``."""
    given = {f"--{name.replace('_', '-')}": str(value) for name, value in told.items() if value is not None}
    return tuple(word for option in given.items() for word in option)


def _declared(options: Path | None, compose: str | None, inspect: Path | None) -> Declared | None:
    """Read the declared options of the user's container from the given file. Return None if no file is given.

    Raises UsageError if several files are given, or if the file can't be parsed.
    """
    from harness.audit.declared import from_compose, from_inspect, from_options  # noqa: PLC0415

    if sum(each is not None for each in (options, compose, inspect)) > 1:
        raise UsageError("Declare the container once: by --options, --compose or --inspect.")
    if options:
        return from_options(_text(options))
    if inspect:
        return from_inspect(_text(inspect))
    if compose:
        named = own_or_shipped(Path(compose)).is_file()
        file, _, service = (compose, "", "") if named else compose.rpartition(":")
        return from_compose(_text(Path(file or compose)), service or None)
    return None


def _text(path: Path) -> str:
    try:
        return own_or_shipped(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read ({error}): name a text file.") from error


def _must_be_writable(files: dict[str, Path | None]) -> None:
    """Raise UsageError if one of the report files can't be written."""
    for path in filter(None, files.values()):
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path} can't be written: name a file in a folder that is there.")


def _write(report: AuditReport, files: dict[str, Path | None]) -> None:
    from harness.audit.html import as_page  # noqa: PLC0415
    from harness.audit.junit import as_junit  # noqa: PLC0415
    from harness.audit.plan import as_documents  # noqa: PLC0415
    from harness.audit.report import as_json  # noqa: PLC0415
    from harness.audit.sarif import as_sarif  # noqa: PLC0415

    played = (each.played for audited in report.audited for each in audited.tried if each.played)
    makers = {
        "json": lambda: json.dumps(as_json(report), indent=1),
        "sarif": lambda: json.dumps(as_sarif(report), indent=1),
        "junit": lambda: as_junit(report).decode(),
        "html": lambda: as_page(report),
        "defeats": lambda: as_documents(dict.fromkeys(played)),
    }
    for name, path in files.items():
        if path is not None:
            try:
                path.write_text(makers[name](), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path} can't be written: {error.strerror}.") from error
