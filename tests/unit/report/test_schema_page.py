"""docs/schema.md is what the schemas say, and the queries of docs/queries.md give the summary's numbers."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from adadecode.report.columns import TABLES, page
from tests.queries import asked_of_duckdb, queries

DOCS = Path(__file__).parents[3] / "docs"
GOLDEN = Path(__file__).parents[2] / "golden" / "run-schema-4"
COMPARED = ("n", "tokens_per_s", "ttft_p50_s", "speedup_geomean", "acceptance_rate")


def test_the_schema_page_is_the_one_that_is_made():
    assert (DOCS / "schema.md").read_text(encoding="utf-8") == page(), (
        "python -m adadecode.report.columns > docs/schema.md"
    )


@pytest.mark.parametrize("name", TABLES)
def test_every_column_has_a_meaning_and_no_other(name):
    _, schema, meanings = TABLES[name]
    assert list(meanings) == schema.names
    assert all(of.what for of in meanings.values())


def summary() -> dict[tuple[str, str], dict]:
    rows = pq.read_table(GOLDEN / "summary.parquet").to_pylist()
    return {(row["task"], row["method"]): row for row in rows if row["category"] is None}


def compare(rows: list[dict], names: tuple[str, ...] = COMPARED) -> None:
    stored = summary()
    assert {(row["task"], row["method"]) for row in rows} == stored.keys()
    for row in rows:
        for name in names:
            expected, found = stored[row["task"], row["method"]][name], row[name]
            is_null = found is None or found != found
            assert is_null if expected is None else found == pytest.approx(expected), (row["method"], name)


@pytest.mark.parametrize(("idx", "library"), [(0, "pandas"), (1, "polars")])
def test_the_queries_of_data_frames_give_the_summarys_numbers(idx, library):
    found: dict = {}
    code = queries("python", GOLDEN)[idx]
    assert f"import {library}" in code
    exec(compile(code, "docs/queries.md", "exec"), found)
    table = found["table"]
    compare(table.to_dict("records") if library == "pandas" else table.to_dicts())


def test_the_queries_of_duckdb_give_the_summarys_numbers_and_parity():
    compare(asked_of_duckdb(GOLDEN), (*COMPARED, "num_parity_exact", "num_parity_checked", "num_logits_equal"))
    first, more = queries("sql", GOLDEN)
    with duckdb.connect() as connection:
        connection.execute(first.split(";")[0])
        of_exits, least = (connection.execute(query).fetchall() for query in more.split(";") if query.strip())
    of_adadecode = next(row for (_, method), row in summary().items() if method == "adadecode")
    assert (sum(row[1] for row in of_exits), sum(row[2] for row in of_exits)) == (
        of_adadecode["num_drafted"],
        of_adadecode["num_accepted"],
    )
    assert len(least) == min(10, of_adadecode["n"])
