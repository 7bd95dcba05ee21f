"""Checks that a requested run has the same settings as the stored run with the same id.

All settings that could change an outcome must be equal. Settings that affect only speed or spending may differ.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.agents.external import ExternalAgent, Player
from harness.agents.scripted.replay import ReplayModel
from harness.agents.scripted.scripted import ScriptedModel
from harness.errors import UsageError
from harness.store.records import RunSpec
from harness.store.store import StoredRun

# The image is compared by name, and by tag once it is built; a plan by the experiment that made it, whose file may have
# got further cells meanwhile.
FREE = {"run_id", "concurrency", "image", "plan"}
NAMES = {"model", "simulated"}  # a player may be called in several ways: by a path from another folder
_BOOKKEEPING = {"price", "sdk"}  # facts of a live model that don't change its answers


def identity(player: Player) -> dict[str, Any]:
    """Return the facts that identify a player when a run is compared with a stored run.

    For a live model, the facts are its settings. For a player with playbooks, recordings or files, the facts include a
    hash of these.
    """
    if isinstance(player, ScriptedModel):
        books = (json.dumps(asdict(book), default=str, sort_keys=True).encode() for book in player.playbooks)
        return {"playbooks": len(player.playbooks), "sha256": _sha256(books)}
    if isinstance(player, ReplayModel):
        logs = (recording.model_dump_json().encode() for recording in player.recordings)
        return {"recordings": len(player.recordings), "sha256": _sha256(logs)}
    if isinstance(player, ExternalAgent):
        return {"label": player.label, "words": list(player.words), "sha256": _sha256(_files(player.words))}
    facts = {name: value for name, value in player.facts(1).items() if name not in _BOOKKEEPING}
    return dict(json.loads(json.dumps(facts)))  # as it will come back from the store


def _sha256(parts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8) + part)
    return hashed.hexdigest()


def _files(words: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the content of each file that a command's arguments name.

    ``words`` is the command split into words. The first word, i.e. the program, is skipped.
    """
    for word in words[1:]:
        with suppress(OSError, ValueError):  # most words are not paths
            if Path(word).is_file():
                yield Path(word).read_bytes()


def difference(stored: StoredRun, asked: RunSpec) -> str | None:
    """Return a description of the first difference between the stored run and the requested run.

    Return None if there is no difference.
    """
    was, now = stored.spec, asked
    if stored.image.get("name", now.image) != now.image:
        return f"image is {stored.image['name']!r} there and {now.image!r} here"
    left_out = FREE | (NAMES if was.player == now.player else set())
    before, after = (json.loads(each.model_dump_json(exclude=left_out)) for each in (was, now))
    if was.player == {}:  # an older version stored none
        after["player"] = {}
    return next(_differences(before, after), None)


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a description of each setting that differs between ``was`` and ``now``.

    ``name`` is the dotted path of both values within the run's settings.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif was != now:
        if name == "player.sha256":
            yield "what plays has changed: its playbooks, recordings or files are others now"
        else:
            yield f"{name} is {_short(was)} there and {_short(now)} here"


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


def lasting_name(player: Player) -> dict[str, str]:
    """Return the request fields that select this player.

    File paths are absolute, so the fields are valid in any folder. API keys are left out.
    """
    if isinstance(player, ExternalAgent):
        return {"agent": shlex.join(player.words)} if player.words else {}
    kind, colon, path = player.name.partition(":")
    if colon and kind in ("script", "replay") and Path(path).exists():
        return {"model": f"{kind}:{Path(path).absolute()}"}
    return {"model": player.name}
