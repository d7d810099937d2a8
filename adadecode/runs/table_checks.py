"""The tables that a closed run keeps, summary.parquet and verify.parquet, against those its rows give now."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from adadecode.methods import baselines
from adadecode.report.findings import RTOL
from adadecode.report.parity import KEY
from adadecode.report.schema import SCHEMA_VERSION, SUMMARY, VERIFY, filled
from adadecode.runs.parquet import metadata_of
from adadecode.runs.storage import Storage
from adadecode.runs.typed import typed_table

# What the rows alone determine, whatever the version.
OF_ROWS = (
    *("n", "num_errors", "num_output_tokens", "tokens_per_s", "decode_tokens_per_s", "ttft_p50_s", "ttft_p90_s"),
    *("num_tpot", "tpot_mean_s", "tpot_p50_s", "tpot_p90_s", "e2e_p50_s", "e2e_p90_s", "num_drafted", "num_accepted"),
    *("acceptance_rate", "tokens_per_round", "layers_per_token", "num_parity_exact", "num_parity_checked"),
    *("num_logits_equal", "num_logits_checked", "num_correct", "num_scored", "consistency", "lossy", "num_engines"),
)
BASELINES = ("baseline", "baseline_total")  # up to version 0.1.0 one for both speedups, and chosen in another way
OVER_BASELINE = ("num_prompts", "speedup_geomean", "speedup_total")
SUMMARY_COLUMNS = (*OF_ROWS, *BASELINES, *OVER_BASELINE)
INTERVALS = ("speedup_geomean_low", "speedup_geomean_high")  # how they are drawn may change between versions
OF_INTERVALS = 3  # the schema version since which intervals are drawn as they are now
OF_TURNS = 4  # the schema version since which rows have a turn and a category
INTERVAL_RTOL = 1e-6  # they come of differences


def closed_lines(storage: Storage, run: Mapping[str, Any], summary: pa.Table, verify: pa.Table) -> list[str]:
    """Where the tables that a closed run keeps beside its rows are not what they give."""
    lines: list[str] = []
    for file, compare, found in (
        ("summary.parquet", summary_lines, summary),
        ("verify.parquet", verify_lines, verify),
    ):
        try:
            content = storage.read(file)
            lines += compare(
                _of_now(typed_table(content, pa.schema([])), schema_version(content)), found, schema_version(content)
            )
        except FileNotFoundError:
            lines.append(f"{file}: it is missing, though run.json says {run.get('status')}")
        except ValueError as error:
            lines.append(f"{file}: it cannot be read ({error})")
    return lines


def worker_lines(run: Mapping[str, Any], workers: list[dict[str, Any]]) -> list[str]:
    """A line where the workers in a closed run's run.json are not those of its commits."""
    stored = run.get("workers", [] if "starts" in run else workers)  # older versions have neither
    if not isinstance(stored, list) or sorted(map(_shown, stored)) != sorted(map(_shown, workers)):
        return ["run.json: its workers are not those of the commits"]
    return []


def _of_now(stored: pa.Table, version: int | None) -> pa.Table:
    """A stored table with the columns of its key that its `version` did not have, as they are read."""
    if version is not None and version < OF_TURNS:
        for name, field in (("turn", VERIFY.field("turn")), ("category", SUMMARY.field("category"))):
            if name not in stored.schema.names:
                stored = stored.append_column(field, pa.nulls(stored.num_rows, field.type))
    return filled(stored)


def are_of_before(storage: Storage, num_rows: int) -> bool:
    """Whether a table is missing, or the summary counts fewer rows than `num_rows`: then more were committed since."""
    try:
        tables = [typed_table(storage.read(f"{name}.parquet"), pa.schema([])) for name in ("summary", "verify")]
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    rows = tables[0].to_pylist()
    counts = [row.get(name) for row in rows if row.get("category") is None for name in ("n", "num_errors")]
    return sum(count for count in counts if isinstance(count, int)) < num_rows


def schema_version(content: bytes) -> int | None:
    """The schema version that the Parquet file `content` names; None where it names none."""
    version = metadata_of(content).get(b"schema_version", b"")
    return int(version) if version.isdigit() and len(version) < 10 else None


def stray_lines(storage: Storage, named: Collection[str]) -> list[str]:
    """A line for each file under `samples/` that is not `named` and has rows, which who reads the folder counts too."""
    lines: list[str] = []
    for name in storage.list("samples"):
        if name not in named and name.endswith(".parquet"):
            try:
                num_rows = typed_table(storage.read(name), pa.schema([])).num_rows
            except (FileNotFoundError, ValueError):
                continue  # who reads the folder is told
            if num_rows:
                lines.append(f"{name}: {num_rows} rows that no commit names; delete it")
    return lines


def summary_lines(stored: pa.Table, found: pa.Table, version: int | None = SCHEMA_VERSION) -> list[str]:
    """Where a stored SUMMARY table is not the one its rows give; of another `version` in the columns that both have."""
    of_now = (*SUMMARY_COLUMNS, *INTERVALS)
    columns = of_now if version is not None and version >= OF_INTERVALS else SUMMARY_COLUMNS
    names = [name for name in columns if name in stored.schema.names]
    lines = _version_lines("summary.parquet", stored, found, version)
    lines = lines or _lines("summary.parquet", stored, found, ("task", "category", "method"), names)
    return lines or _speedup_lines(stored)


def _speedup_lines(summary: pa.Table) -> list[str]:
    """Where a SUMMARY table of any version has an interval without its speedup in it, or a baseline that is no vanilla."""
    lines: list[str] = []
    for row in summary.to_pylist():
        of = f"of {row['task']} {row['method']}"
        low, value, high = (row.get(f"speedup_geomean{end}") for end in ("_low", "", "_high"))
        bounds = [(low, value), (value, high)] if value is not None else []
        if any(None not in pair and not pair[0] <= pair[1] * (1 + RTOL) for pair in bounds):
            lines.append(f"summary.parquet: the speedup {of} is {value}, outside of its interval from {low} to {high}")
        others = [name for name in BASELINES if row.get(name) not in (None, *baselines())]
        lines += [f"summary.parquet: {name} {of} is {row[name]}, which is no vanilla" for name in others]
    return lines


def verify_lines(stored: pa.Table, found: pa.Table, version: int | None = SCHEMA_VERSION) -> list[str]:
    """Where a stored VERIFY table is not the one its rows give; of another `version` in the columns that both have."""
    lines = _version_lines("verify.parquet", stored, found, version)
    names = [name for name in found.schema.names if name in stored.schema.names and name not in KEY]
    return lines or _lines("verify.parquet", stored, found, KEY, names)


def _version_lines(file: str, stored: pa.Table, found: pa.Table, version: int | None) -> list[str]:
    """Where a table names no schema version, or the present one and has not all of its columns."""
    if version is None:
        return [f"{file}: it names no schema version, as tables of runs do"]
    missing = [name for name in found.schema.names if name not in stored.schema.names]
    return [f"{file}: it has no column {missing[0]}"] if missing and version == SCHEMA_VERSION else []


def published_lines(summary: pa.Table, verify: pa.Table) -> list[str]:
    """Where a SUMMARY and a VERIFY table that were published without their rows contradict each other, of any version."""
    checked: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {}
    for row in verify.to_pylist():
        for category in {None, row["category"]}:
            checked.setdefault((row["task"], category, row["method"]), []).append(row)
    lines: list[str] = []
    for line in summary.to_pylist():
        of_verify = checked.pop((line["task"], line["category"], line["method"]), [])
        logits = [row["logits_equal"] for row in of_verify if row["logits_equal"] is not None]
        found = {
            "num_parity_exact": sum(row["parity"] == "exact" for row in of_verify),
            "num_parity_checked": sum(row["parity"] is not None for row in of_verify),
            "num_logits_equal": sum(logits) if logits else None,
            "num_logits_checked": len(logits) or None,
        }
        if line["num_parity_checked"] is None and not of_verify:
            continue  # vanilla has nothing to be compared with
        lines += [
            f"summary.parquet: {name} of {line['task']} {line['method']} is {line[name]}, by verify.parquet {count}"
            for name, count in found.items()
            if line[name] != count
        ]
    lines += _speedup_lines(summary)
    return lines + [
        f"verify.parquet: {task} {method} is not in summary.parquet"
        for task, category, method in checked
        if category is None
    ]


def _lines(file: str, stored: pa.Table, found: pa.Table, key: Sequence[str], names: Sequence[str]) -> list[str]:
    """One line where the tables differ in the columns `names` or in the `key` of a row; none where they do not."""
    missing = [name for name in key if name not in stored.schema.names]
    if missing:
        return [f"{file}: it has no column {missing[0]}"]
    in_order = [(name, "ascending") for name in key]
    if stored.sort_by(in_order).select([*key, *names]).equals(found.sort_by(in_order).select([*key, *names])):
        return []
    theirs, ours = ({tuple(row[name] for name in key): row for row in table.to_pylist()} for table in (stored, found))
    if theirs.keys() != ours.keys() or stored.num_rows != found.num_rows:
        return [f"{file}: it has {stored.num_rows} rows, and not those of the {found.num_rows} that the samples give"]
    wrong = {of: differing for of, row in ours.items() if (differing := _differing(names, theirs[of], row))}
    if not wrong:
        return []
    first, (name, *_) = next(iter(wrong.items()))
    columns = ", ".join(dict.fromkeys(name for differing in wrong.values() for name in differing))
    return [
        f"{file}: {len(wrong)} rows are not what the samples give, in {columns}; first {_key_text(key, first)}: "
        f"{name} is stored as {theirs[first][name]} and recomputed as {ours[first][name]}"
    ]


def _key_text(key: Sequence[str], values: tuple[Any, ...]) -> str:
    """The values of a row's key for a person: without a category that it has none of, and turn 0."""
    shown = [(name, value) for name, value in zip(key, values, strict=True) if value is not None]
    return " ".join(str(value) for name, value in shown if (name, value) != ("turn", 0))


def _differing(names: Sequence[str], stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [name for name in names if _differ(name, stored, found)]


def _differ(name: str, stored: dict[str, Any], found: dict[str, Any]) -> bool:
    if "baseline_total" not in stored and name in (*BASELINES, *OVER_BASELINE) and _other_baseline(name, stored, found):
        return False
    a, b = stored[name], found[name]
    if isinstance(a, float) and isinstance(b, float):
        rtol = INTERVAL_RTOL if name in INTERVALS else RTOL
        return not (abs(a - b) <= rtol * max(abs(a), abs(b)) or (a != a and b != b))
    return a != b


def _other_baseline(name: str, stored: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether a version that had one baseline for both speedups took another vanilla than is taken now."""
    now = found["baseline_total" if name == "speedup_total" else "baseline"]
    return stored.get("baseline") in baselines() and stored["baseline"] != now


def _shown(worker: Any) -> str:
    return json.dumps(worker, sort_keys=True)
