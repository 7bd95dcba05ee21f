"""Finds and reads the data files that ship with the lab: tasks, kill switches, images and prompts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import yaml

from harness.errors import UsageError

_PACKAGE = Path(__file__).parent.parent
# A checkout has the data files in its top folder; an installed wheel has them inside the package.
ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent


SHIPPED = ("docs", "experiments", "sandbox_images", "shutdown_scripts", "tasks")  # folders of ROOT


def own_or_shipped(path: Path, base: Path = Path()) -> Path:
    """Return ``path``, or the absolute path of a shipped file or folder if the user has nothing at ``path``.

    A relative path of the user starts at the folder ``base``. A shipped path is, for example,
    "tasks/playbooks/edit.yaml". If nothing is found, ``path`` is returned unchanged.
    """
    if path.parts[:1] and path.parts[0] in SHIPPED and ".." not in path.parts and not os.path.exists(base / path):
        shipped = ROOT / path
        return shipped if os.path.exists(shipped) else path
    return path


def names_in(folder: str, marker: str) -> list[str]:
    """Return the names of the subfolders of ``folder`` that contain a file named ``marker``."""
    return sorted(path.parent.name for path in (ROOT / folder).glob(f"*/{marker}"))


def pick(what: str, name: str, known: Collection[str]) -> str:
    """Return the entry of ``known`` that equals ``name``, ignoring letter case.

    Raises UsageError if there is no such entry. The error message lists similar names, or all names if none is similar.
    ``what`` is the noun for the error message, such as "task".
    """
    spelled = {each.lower(): each for each in known}
    if name in known:
        return name
    if name.lower() in spelled:
        return spelled[name.lower()]
    near = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(spelled[each] for each in near)}?" if near else "there is"
    listed = "" if near else f" {', '.join(sorted(spelled.values()))}."
    raise UsageError(f"There is no {what} '{name}': {hint}{listed}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one of the lab's own YAML files and return its content, which must be a mapping."""
    return cast("dict[str, Any]", yaml.safe_load(path.read_text(encoding="utf-8")))
