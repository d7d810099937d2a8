"""What two runs were made of and by, compared by name: settings, hashes, versions, revisions, machines."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from adadecode.printable import on_one_line
from adadecode.runs.engines import stored_facts
from adadecode.runs.run_file import part_of
from adadecode.settings import in_full

MISSING = "not stored"


def provenance_differences(*runs: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name and each run's value of everything in which some run.json differ but for names, times and processes."""
    facts = [dict(_facts(run)) for run in runs]
    names = sorted({name for of in facts for name in of}, key=lambda name: (name.startswith("worker."), name))
    found = [(name, *(of.get(name, MISSING) for of in facts)) for name in names]
    return [line for line in found if len(set(line[1:])) > 1]


def difference_lines(differences: list[tuple[str, ...]]) -> list[str]:
    """A line for each, or one that says that there is none."""
    return [f"{name}: A {before}, B {after}" for name, before, after in differences] or [
        "provenance: no difference in settings, hashes, versions or machines"
    ]


def _facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(run.get("fingerprint"), str):
        yield "fingerprint", on_one_line(run["fingerprint"])
    config = run.get("config")
    yield from _flat("config", in_full(config) if isinstance(config, dict) else {})
    yield from _flat("provenance", part_of(run, "provenance"))
    values: dict[str, set[str]] = {}
    for worker in stored_facts(run):
        for name, value in _flat("worker", {key: value for key, value in worker.items() if key not in PROCESS}):
            values.setdefault(name, set()).add(value)
    yield from ((name, " and ".join(sorted(found))) for name, found in values.items())


# Of a worker: what is no fact of its rows, or told elsewhere.
PROCESS = ("pid", "worker_id", "ready_at", "start_up", "others", "model_notes")


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """`a.b.c` and its value as text, of every leaf of nested mappings."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{name}.{on_one_line(key)}", part)
    else:
        yield name, on_one_line(value if isinstance(value, str) else json.dumps(value, sort_keys=True))
