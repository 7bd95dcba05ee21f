"""Finds the kind of player that a --model name belongs to, and makes the player."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pkgutil import iter_modules

from harness.agents import players
from harness.agents.kind import PlayerKind, PlayerOptions
from harness.agents.player import Player
from harness.agents.providers.model import ApiModel, api_model
from harness.agents.providers.options import ModelOptions
from harness.agents.providers.presets import UnknownModelNameError, providers
from harness.errors import UsageError
from harness.resources import plugins
from harness.resources.plugins import Plugin
from harness.tasks.task import Task

NO_OPTIONS = PlayerOptions()


@plugins.cached
def kinds() -> dict[str, PlayerKind]:
    """Return all kinds of players by their prefix, including those of plugins. The prefix of live models is empty.

    Raises UsageError if two kinds have the same prefix.
    """
    modules = [import_module(f"{players.__name__}.{each.name}") for each in iter_modules(players.__path__)]
    found: dict[str, PlayerKind] = {module.KIND.prefix: module.KIND for module in modules}
    places = {module.KIND.prefix: str(module.__file__) for module in modules}
    for plugin, kind in _of_plugins():
        if kind.prefix in found:
            both = f"{places[kind.prefix]} and {plugin.path}"
            raise UsageError(f"There are two players named '{kind.prefix}', {both}: rename one.")
        found[kind.prefix], places[kind.prefix] = kind, str(plugin.path)
    return found


def _of_plugins() -> Iterator[tuple[Plugin, PlayerKind]]:
    return plugins.objects("players", "KIND", PlayerKind, "a PlayerKind")


def player_plugins() -> tuple[Plugin, ...]:
    """Return the plugins that define kinds of players."""
    return tuple(plugin for plugin, _ in _of_plugins())


def plugin_of(kind: PlayerKind) -> Iterator[tuple[str, Plugin]]:
    """Yield the plugin that defines a kind of players, together with the word "player".

    Yield nothing if the kind ships with the lab.
    """
    return (("player", plugin) for plugin, each in _of_plugins() if each is kind)


def kind_of(name: str) -> tuple[PlayerKind, str]:
    """Return the kind that a --model name belongs to, and the name's argument, i.e. the part after the colon.

    A name without a known prefix, such as ``o3``, belongs to the kind of live models. Its argument is the whole name.
    """
    prefix, colon, argument = name.partition(":")
    kind = kinds().get(prefix)
    if kind is None or not prefix or (colon and not argument) or kind.bare is bool(colon):
        return kinds()[""], name
    return kind, argument


def default_task(name: str) -> str:
    """Return the task to use with a --model name if the user names none."""
    kind, argument = kind_of(name)
    return kind.default_task(argument)


def is_live(name: str) -> bool:
    """Return whether a --model name stands for a live model."""
    return kind_of(name)[0].live


def make_player(name: str, task: Task, options: PlayerOptions = NO_OPTIONS) -> Player:
    """Make the player for a --model name. Raises UsageError if the name or an option is invalid."""
    kind, argument = kind_of(name)
    if not kind.live:
        options.live.must_be_default(name)
    with _suggesting(name):
        return _made(kind, argument, task, options)


def _made(kind: PlayerKind, argument: str, task: Task, options: PlayerOptions) -> Player:
    """Make a player of this kind.

    Raises UsageError if the argument or an option is invalid, or if a plugin's code fails.
    """
    plugin = next(plugin_of(kind), None)
    problem = f"The player in the plugin {plugin[1].path} can't be made" if plugin else ""
    with plugins.guarded(problem) if plugin else nullcontext():
        return kind.make(argument, task, options)


def check_name(name: str, task: Task, condition: str | None) -> None:
    """Raise UsageError if a --model name is invalid. No API key is needed."""
    kind, argument = kind_of(name)
    with _suggesting(name):
        if kind.check:
            kind.check(argument)
        else:
            _made(kind, argument, task, PlayerOptions(condition=condition))


def live_model(name: str, options: ModelOptions) -> ApiModel:
    """Make a live model without tools. Raises UsageError if the name or an option is invalid."""
    with _suggesting(name):
        return api_model(name, None, options)


def usage() -> str:
    """Return the text for --help that lists the forms of --model names and what each form stands for."""
    return ", ".join([*(f"{kind.form} ({kind.about})" for kind in _listed()), "a model such as o3", "PROVIDER/NAME"])


def _listed() -> list[PlayerKind]:
    return [kind for kind in kinds().values() if kind.form]


@contextmanager
def _suggesting(name: str) -> Iterator[None]:
    """Add the suggestions for ``name`` to the error if the ``with`` block finds that no model has this name."""
    try:
        yield
    except UnknownModelNameError as error:
        raise UsageError(f"{error}{_suggestions(name)}") from error


def _suggestions(name: str) -> str:
    """Return the end of an error message: the known names most similar to ``name``, if any, and all forms of names."""
    hosts = [f"{each}/" for each in providers()]
    prefixes = [kind.prefix if kind.bare else f"{kind.prefix}:" for kind in _listed()]
    known = (*prefixes, *hosts, *(model for each in providers().values() for model in each.models))
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    forms = (*(kind.form for kind in _listed()), *(f"{each}NAME" for each in hosts))
    return f"{hint} There are {', '.join(forms)}, and NAME with --base-url."
