"""docs/store.md says what is in the store, column by column."""

from __future__ import annotations

import importlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from harness.store.schema import APPLICATION_ID, SCHEMA
from harness.store.store import FILE, Store
from tests.builders import run_spec, trial_record, versions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
CODES = {"text": "TEXT", "JSON": "TEXT", "integer": "INTEGER", "0 or 1": "INTEGER", "real": "REAL"}


def documented() -> dict[str, list[tuple[str, str, bool]]]:
    """Return the tables of the page, each with the name, the SQL type and "may be empty" of its columns."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for section in re.split(r"^##+ ", PAGE, flags=re.MULTILINE):
        if table := re.match(r"`(\w+)`:", section):
            rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", section, flags=re.MULTILINE)
            found[table[1]] = [(name, CODES[re.split(r"[,:]", type_)[0]], "or empty" in type_) for name, type_ in rows]
    return found


def test_the_page_has_the_columns_of_the_store(tmp_path: Path) -> None:
    """The page has every table and column of a new store with its type, and no other."""
    with Store(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = {
            table: sorted(
                (name, type_, not (required or key))
                for _, name, type_, required, _, key in db.execute(f"PRAGMA table_info({table})")
            )
            for table in tables
        }
    assert {table: sorted(rows) for table, rows in documented().items()} == columns


def test_the_questions_of_the_page_are_answered(tmp_path: Path) -> None:
    """Each SQL query of the page works on a store, which is opened as the page says."""
    with Store(tmp_path) as store:
        store.add_run(run_spec("monday"), {}, versions())
        store.add_trial(trial_record(1, run_id="monday"))
    queries = re.findall(r'"(SELECT [^"]+)"', PAGE)
    assert len(queries) == 3
    with closing(sqlite3.connect(f"file:{tmp_path / FILE}?mode=ro", uri=True)) as db:
        for query in queries:
            assert db.execute(query, ("monday",) * query.count("?")).fetchone()


def test_the_page_has_each_version() -> None:
    """The page says what each version of the schema brought, and has the application id of the code."""
    versions = PAGE.split("## Versions")[1]
    assert re.findall(r"^\| (\d+) \|", versions, flags=re.MULTILINE) == [str(n) for n in range(1, SCHEMA + 1)]
    assert f"{APPLICATION_ID}, the bytes `{APPLICATION_ID.to_bytes(4).decode()}`" in versions


def test_the_models_of_json_columns_exist() -> None:
    """Each model that the page names for a JSON column is in the module that it names, and is documented there."""
    named = re.findall(r"JSON: `(\w+)` in `([\w/]+)\.py`", PAGE)
    assert len(named) >= 9
    for model, module in named:
        assert getattr(importlib.import_module(module.replace("/", ".")), model).__doc__
