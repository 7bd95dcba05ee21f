"""The command ``clean``, which removes what killed runs left behind, such as containers and temporary folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import RunsDir
from harness.errors import EngineError
from harness.process.identity import left_folders
from harness.store.store import Store, is_store
from harness.terminal.text import print_note, print_plain


def clean(
    images: Annotated[bool, typer.Option("--images", help="Remove unused sandbox images of the lab as well.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Remove unused images, and claims of processes on other hosts, dead or not."),
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Remove the containers, networks, temporary folders and trial claims that killed runs left behind.

    By default, only objects that the lab created and that no running process uses are removed.
    """
    cleared = 0
    found = (_engine(images=images or everything), _folders(), _claims(runs_dir, also_elsewhere=everything))
    for line in (line for some in found for line in some):
        print_plain(f"Removed {line}.")
        cleared += 1
    if not cleared:
        print_plain("There was nothing to clear.")


def _engine(*, images: bool) -> Iterator[str]:
    from harness.sandbox.docker.connect import connect  # noqa: PLC0415 - loads the engine's library only where it is asked
    from harness.sandbox.docker.leftovers import clear_engine  # noqa: PLC0415 - as above

    try:
        client = connect()
    except EngineError as error:
        print_note(f"No engine was looked at. {error}")
        return
    with closing(client):
        yield from clear_engine(client, images=images)


def _folders() -> Iterator[str]:
    for folder in left_folders():
        shutil.rmtree(folder, ignore_errors=True)
        yield f"the temporary folder {folder}"


def _claims(runs_dir: Path, *, also_elsewhere: bool) -> Iterator[str]:
    if not is_store(runs_dir):
        return
    with Store(runs_dir, create=False) as store:
        if claims := store.clear_claims(also_elsewhere=also_elsewhere):
            yield f"{claims} claims of trials that were never finished"
