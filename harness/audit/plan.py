"""Checks an audit request and selects its kill switches and tactics, before any container starts."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from harness.agents.scripted.playbook import AdvanceStep, Playbook, RunStep, Step, SubmitStep, load_playbooks
from harness.audit.matrix import TACTICS, UNNAMED
from harness.audit.targets import TASK, OwnSwitch, checked
from harness.errors import UsageError
from harness.process.invocation import invoked_as
from harness.resources.data import ROOT, pick
from harness.store.records import RunSpec
from harness.tasks.conditions import condition_for
from harness.tasks.registry import DEFAULT_IMAGE, mechanism_for, mechanisms_for
from harness.tasks.task import Mechanism, TaskOptions

CORPUS = ROOT / "tasks" / "playbooks"


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """The options of an audit.

    ``mechanisms``, ``families`` and ``tactics`` contain names; an empty tuple selects all. ``own`` is the user's own
    kill switch, or None if the lab's kill switches are audited. ``playbooks`` is the path of the tactics' playbooks, or
    None for the playbooks that ship with the lab. ``command`` is the command line as typed. ``naming`` contains the
    command-line arguments that specify the user's own kill switch.
    """

    mechanisms: tuple[str, ...] = ()
    own: OwnSwitch | None = None
    families: tuple[str, ...] = ()
    tactics: tuple[str, ...] = ()
    playbooks: Path | None = None
    concurrency: int = 4
    runs_dir: Path = Path("runs")
    command: str = field(default_factory=lambda: f"{invoked_as()} audit")
    naming: tuple[str, ...] = ()


def mechanisms(request: AuditRequest) -> tuple[Mechanism, ...]:
    """Return the lab's kill switches that the request selects.

    If the request names kill switches, they are returned in the request's order. Otherwise, all are returned, ordered
    from weak to strong. Returns an empty tuple if the user's own kill switch is audited. Raises UsageError if a name is
    unknown, if an option of the user's own kill switch is invalid, or if the request selects both the lab's and the
    user's kill switches.
    """
    if request.own is not None:
        if request.mechanisms:
            raise UsageError("--mechanism audits what ships, --image and --dockerfile your own: use one of them.")
        checked(request.own)
        return ()
    if not request.mechanisms:
        return mechanisms_for(TASK)
    return tuple(mechanism_for(TASK, name) for name in dict.fromkeys(request.mechanisms))


def tactics(request: AuditRequest) -> tuple[Playbook, ...]:
    """Return the playbooks of the tactics that the request selects.

    Raises UsageError if the request contains an unknown name or no playbook matches.
    """
    books = [book for book in load_playbooks(request.playbooks or CORPUS) if book.task == TASK]
    attacks = {book.id: book for book in books if (book.family or UNNAMED) in TACTICS}
    families = {pick("family of tactics", name, TACTICS) for name in request.families}
    names = {pick("tactic", name, attacks) for name in request.tactics}
    chosen = [
        book
        for book in attacks.values()
        if (not families or (book.family or UNNAMED) in families) and (not names or book.id in names)
    ]
    if not chosen:
        raise UsageError("There is no tactic to play: no playbook of these families and names attacks a kill switch.")
    return tuple(chosen)


def planned(request: AuditRequest, mechanism: Mechanism) -> RunSpec:
    """Return the spec of the run that will play the tactics against ``mechanism``.

    The spec's number of trials, ``n``, is 0 and is set later. If the user's own kill switch is audited, ``mechanism``
    is a placeholder that the caller replaces in the spec.
    """
    name = request.own.name if request.own else mechanism.name
    run_id = f"audit-{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"
    return RunSpec(
        run_id="".join(char if char.isalnum() or char in "-_." else "-" for char in run_id),
        model="audit",
        simulated=None,
        task=TASK,
        condition=condition_for(TASK, None),
        mechanism=mechanism.filled({}),
        image=DEFAULT_IMAGE,
        n=0,
        concurrency=request.concurrency,
        options=TaskOptions(),
        message_limit=60,
    )


def again(request: AuditRequest, mechanism: str) -> str:
    """Return the command that audits a kill switch again.

    ``mechanism`` is the kill switch's name. It is ignored if the user's own kill switch is audited.
    """
    words = request.naming if request.own else ("--mechanism", mechanism)
    return f"{invoked_as()} {shlex.join(['audit', *words])}"


def as_yaml(book: Playbook) -> str:
    """Return a playbook as the text of a YAML document."""
    document: dict[str, object] = {"id": book.id, "about": book.about or book.id}
    document |= {"family": book.family} if book.family else {}
    document |= {"source": book.source} if book.source else {}
    document["steps"] = [_step(step) for step in book.steps]
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes multi-line strings in block style."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _step(step: Step) -> dict[str, str]:
    optional = {"say": step.say, "think": step.think}
    spoken = {key: value for key, value in optional.items() if value is not None}
    if isinstance(step, RunStep):
        return {"run": step.cmd, **spoken}
    if isinstance(step, SubmitStep):
        return {"submit": step.answer, **spoken}
    assert isinstance(step, AdvanceStep)
    return {"advance": step.until, **({"with": step.command} if step.command else {}), **spoken}


def as_documents(books: Iterable[str]) -> str:
    """Join the YAML texts of several playbooks into one multi-document YAML text."""
    return "---\n".join(books)
