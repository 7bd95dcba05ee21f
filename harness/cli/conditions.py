"""The command ``conditions``, which lists the available conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.options import AsJson, print_json
from harness.tasks.conditions import conditions_with
from harness.terminal.text import safe, safe_line


def list_conditions(
    conditions: Annotated[Path | None, typer.Option(help="A file with conditions of your own.")] = None,
    as_json_: AsJson = False,
) -> None:
    """List the available conditions, with the placement of each instruction and the source of its wording."""
    known = conditions_with(conditions).values()
    if as_json_:
        print_json([each.model_dump() for each in known])
        return
    table = Table(pad_edge=False)
    for name in ("condition", "task", "placement", "wording", "about"):
        table.add_column(name, overflow="fold", no_wrap=name == "condition")
    for each in known:
        row = (each.name, each.task, each.placement, each.wording or "", each.about)
        table.add_row(*map(safe_line, row))
    console = Console()
    console.print(table)
    console.print(safe("wording: published as it stands; fragment, in part (--json says which); own, not at all"))
