"""Defines options and output functions that several commands share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.store.records import RunSpec
from harness.store.store import Store
from harness.store.summary import Summary
from harness.tasks.declared_settings import DeclaredSetting, all_settings
from harness.tasks.setting import KINDS, Setting, Value, spelled
from harness.terminal.runs import print_run

MAX_LISTED = 200  # trials of a run that are listed one by one
RunsDir = Annotated[Path, typer.Option(help="The folder that holds the runs.", envvar="OFFSWITCH_RUNS_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]

# How a live model is reached, sampled, waited for and paid.
BaseUrl = Annotated[
    str | None, typer.Option(help="Address of your own server; its key, if any, is read from OFFSWITCH_API_KEY.")
]
Api = Annotated[
    str | None, typer.Option(help="responses, chat or messages. [default: the provider's; chat with --base-url]")
]
Effort = Annotated[str | None, typer.Option(help="Reasoning effort of a live model. [default: the model's]")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature of a live model. [default: the model's]")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens that a live model may write in a turn. [default: the model's]")
]
CallLimit = Annotated[float, typer.Option(help="Seconds that one request to a provider may take.")]
Patience = Annotated[
    float, typer.Option(help="Minutes for which a failing request is retried, from its first failure.")
]
MaxCost = Annotated[float | None, typer.Option(help="US dollars after which a run is stopped. [default: no limit]")]
MaxTokensTotal = Annotated[
    int | None, typer.Option(help="Tokens, read and written, after which a run is stopped. [default: no limit]")
]
Prices = Annotated[Path | None, typer.Option(help="A file of prices that take precedence over the shipped ones.")]
NoPreflight = Annotated[
    bool, typer.Option("--no-preflight", help="Don't check key and model with the provider beforehand.")
]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each setting that a task or a kill switch declares.

    On the command line, these options replace the parameter ``settings`` of ``command``. The parameter receives the
    given values, keyed by the setting's name. A command without this parameter is returned unchanged.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    if "settings" not in parameters:
        return command
    declared = all_settings(taken={*parameters, *_option_names(parameters.values())})

    @wraps(command)
    def run(**options: Any) -> None:
        given = {name: _given(each.first, options.pop(name)) for name, each in declared.items()}
        command(**options, settings={name: value for name, value in given.items() if value is not None})

    options: list[inspect.Parameter] = []
    for parameter in parameters.values():
        options += map(_option, declared.values()) if parameter.name == "settings" else [parameter]
    signature = inspect.Signature([each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options])
    run.__signature__ = signature  # type: ignore[attr-defined] # typer reads it
    return run


def _option_names(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """Yield the names that are already taken and that no setting's option of a command may have.

    These are the names of the command's own options, and of the options that every command has.
    """
    yield from ("--help", "-v", "--verbose", "--log-level", "--plugins", "--providers")
    yield from ("verbose", "log_level", "plugins", "providers")
    for parameter in parameters:
        yield f"--{parameter.name.replace('_', '-')}"
        for each in getattr(parameter.annotation, "__metadata__", ()):
            yield from each.param_decls or ()


def _option(declared: DeclaredSetting) -> inspect.Parameter:
    """Return the command-line option of a setting as a parameter for typer."""
    setting = declared.first
    kind: Any = bool if setting.type == "bool" else KINDS[setting.type] | None
    annotation = Annotated[kind, typer.Option(setting.option, help=_help(declared))]
    default = False if setting.type == "bool" else None
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help(declared: DeclaredSetting) -> str:
    """Return the help text of a setting's option.

    The text contains the description by each task or kill switch that declares the setting. Unless the setting's type
    is bool, the text ends with the default.
    """
    noun = "mechanism" if declared.of_mechanism else "task"
    owners: dict[str, list[str]] = {}
    defaults: dict[str, list[str]] = {}
    for name, each in declared.declarations.items():
        owners.setdefault(each.help.rstrip("."), []).append(name)
        defaults.setdefault(each.unset if each.default is None else spelled(each.default), []).append(name)
    about = f"{_by_owner(owners, noun, '. ')}."
    if declared.first.type == "bool":
        return about
    if len(defaults) == 1:
        return f"{about} [default: {next(iter(defaults))}]"
    return f"{about} [default: {_by_owner(defaults, noun, '; ')}]"


def _by_owner(texts: Mapping[str, Iterable[str]], noun: str, separator: str) -> str:
    """Join the keys of ``texts``, each followed by the names of the tasks or kill switches that use this text.

    ``noun`` is the word in front of these names. ``separator`` is placed between the joined parts.
    """
    return separator.join(f"{text} ({noun} {', '.join(names)})" for text, names in texts.items())


def _given(setting: Setting, value: Value | None) -> Value | None:
    """Return the value that an option gives to a setting, or None if the option isn't used."""
    if setting.type == "bool":
        return not setting.default if value else None
    return value


def print_json(result: Any) -> None:
    """Print a command's result as one line of JSON on stdout.

    A string must already be JSON and is printed unchanged.
    """
    print(result if isinstance(result, str) else json.dumps(result))  # noqa: T201 - stdout is what it is for


def print_stored(store: Store, run: RunSpec, summary: Summary) -> None:
    """Print a stored run and its trials.

    If the run has more than MAX_LISTED trials, print only a selection of them.
    """
    numbers = store.worth_showing(run.run_id, MAX_LISTED) if summary.n > MAX_LISTED else None
    records = store.trials(run.run_id, numbers)
    print_run(Console(), run, records, summary, 0 if numbers is None else summary.n - len(numbers))
