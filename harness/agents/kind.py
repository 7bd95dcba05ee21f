"""Defines kinds of players. A kind makes the players whose --model names have its prefix, such as ``replay:``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.agents.player import Player
from harness.agents.providers.options import ModelOptions
from harness.store.records import RunSpec
from harness.tasks.task import Task


@dataclass(frozen=True, slots=True)
class PlayerOptions:
    """The user's options for a player.

    ``live`` holds the options that apply only to live models. ``condition`` is the name of the condition, and ``seed``
    is the seed of random draws. Each of the two is None if the user gave none. ``family`` limits playbooks to one
    tactic family, unless it is None.

    The other options are for stored runs and for the user's own agents. ``label`` is the model name that the user gave
    to an agent, or None. ``wait_limit_s`` is how many seconds the lab waits for a request of an agent. ``agent_folder``
    is the folder at which relative paths in an agent's command start, or None for the current folder. ``runs_dir`` is
    the folder with the stored runs, or None if there is no such folder.
    """

    live: ModelOptions = field(default_factory=ModelOptions)
    condition: str | None = None
    seed: int | None = None
    family: str | None = None
    label: str | None = None
    wait_limit_s: float = 300.0
    agent_folder: Path | None = None
    runs_dir: Path | None = None


def _math(argument: str) -> str:
    return "math"


def _no_run(argument: str, runs_dir: Path) -> RunSpec | None:
    return None


@dataclass(frozen=True, slots=True)
class PlayerKind:
    """A kind of player, such as a replay. A --model name is its ``prefix``, a colon and an argument.

    ``form`` shows how such a name is written, and ``about`` what it stands for. A kind whose ``form`` is empty isn't
    listed in --help. ``make`` is called with the argument, the trial's task and the user's options, and returns the
    player; it raises UsageError if the argument is invalid. If ``bare`` is True, a name is the prefix alone. ``live``
    tells whether a provider is called, and ``counts_trials`` whether the player itself knows how many trials a run has.

    ``default_task`` returns the task for an argument if the user names none. ``stored_run`` returns the stored run that
    an argument names, or None; the options that the user leaves open are then those of that run. ``check`` raises
    UsageError if an argument is invalid, and needs no API key; if it is None, ``make`` is called instead.
    """

    prefix: str
    form: str
    about: str
    make: Callable[[str, Task, PlayerOptions], Player]
    bare: bool = False
    live: bool = False
    counts_trials: bool = False
    default_task: Callable[[str], str] = _math
    stored_run: Callable[[str, Path], RunSpec | None] = _no_run
    check: Callable[[str], object] | None = None
