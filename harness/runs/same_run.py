"""Checks that a requested run has the same settings as the stored run with the same id.

All settings that could change an outcome must be equal. Settings that affect only speed or spending may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from harness.errors import UsageError
from harness.store.records import RunSpec
from harness.store.store import StoredRun
from harness.tasks.declared_settings import settings_of
from harness.tasks.task import TaskOptions

# The image is compared by name, and by tag once it is built; a plan by the experiment that made it, whose file may have
# got further cells meanwhile.
FREE = {"run_id", "concurrency", "image", "plan"}
NAMES = {"model", "simulated"}  # a player may be called in several ways: by a path from another folder


def difference(stored: StoredRun, asked: RunSpec) -> str | None:
    """Return a description of the first difference between the stored run and the requested run.

    Return None if there is no difference.
    """
    was, now = _with_defaults(stored.spec), asked
    if stored.image.get("name", now.image) != now.image:
        return f"image is {stored.image['name']!r} there and {now.image!r} here"
    left_out = FREE | (NAMES if was.player == now.player else set())
    before, after = (json.loads(each.model_dump_json(exclude=left_out)) for each in (was, now))
    if was.player == {}:  # an older version stored none
        after["player"] = {}
    return next(_differences(before, after), None)


def _with_defaults(run: RunSpec) -> RunSpec:
    """Return a copy of a stored run in which each setting without a value has its default.

    A setting has no value if its task or kill switch declared it only after the run was stored.
    """
    declared = settings_of(run.task, run.mechanism.name)
    defaults = {name: each.default for name, each in declared.items() if each.default is not None}
    return run.model_copy(update={"options": TaskOptions.model_validate({**defaults, **run.options.model_dump()})})


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a description of each setting that differs between ``was`` and ``now``.

    ``name`` is the dotted path of both values within the run's settings.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif was != now:
        if name == "plugins":
            yield _plugins_differ(was or [], now)
        elif name == "player.sha256":
            yield "what plays has changed: its playbooks, recordings or files are others now"
        else:
            yield f"{name} is {_short(was)} there and {_short(now)} here"


def _plugins_differ(was: list[dict[str, str]], now: list[dict[str, str]]) -> str:
    """Return a description of the first plugin that differs between the two lists.

    ``was`` contains the plugins of the stored run, and ``now`` contains those of the requested run.
    """
    before, after = ({(each["kind"], each["name"]): each["sha256"] for each in used} for used in (was, now))
    for key in (*before, *after):
        kind, name = key
        if key not in before or key not in after:
            return f"the {kind} '{name}' is a plugin only {'there' if key in before else 'here'}"
        if before[key] != after[key]:
            return f"the files of the plugin '{name}' ({kind}) have changed since it began"
    return "the plugins are others now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def must_be_same(stored: StoredRun, asked: RunSpec) -> None:
    """Raise UsageError if the requested run differs from the stored run.

    The error message describes the first difference.
    """
    if differs := difference(stored, asked):
        run_id = stored.spec.run_id
        raise UsageError(f"There is already a run '{run_id}' here, and another: {differs}. Choose another --run-id.")
