"""The queries of docs/queries.md as they stand there, over a run of ours."""

import re
from pathlib import Path
from typing import Any

import duckdb

FILE = Path(__file__).parents[1] / "docs" / "queries.md"


def queries(kind: str, run: Path) -> list[str]:
    """The blocks of code of one language, about the run at `run`."""
    text = FILE.read_text(encoding="utf-8").replace("results/my-run", str(run))
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def asked_of_duckdb(run: Path) -> list[dict[str, Any]]:
    """What its first query gives: a row for each task and method."""
    *before, last = [part for part in queries("sql", run)[0].split(";") if part.strip()]
    with duckdb.connect() as connection:
        for statement in before:
            connection.execute(statement)
        return connection.sql(last).to_arrow_table().to_pylist()
