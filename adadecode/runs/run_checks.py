"""A run's tables held against what else its folder says: commits, plan, settings, the tables made of its rows.

Everything here needs the folder alone. What it finds are lines; what cannot be recomputed, as for a run of an older
version, has none.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.methods import METHODS, in_turn
from adadecode.records import ShardOutcome
from adadecode.report.findings import RTOL, Columns, Findings, Mask, Wrong, differs
from adadecode.report.row_checks import Rules, row_findings
from adadecode.report.sample_checks import sample_findings
from adadecode.report.schema import LOST_BY
from adadecode.runs.fingerprint import recomputed_fingerprint, stored_hashes
from adadecode.runs.outcome import outcome_of
from adadecode.runs.plan import plan_hash
from adadecode.settings import own_stops
from adadecode.tasks import TASKS


class RunChecks:
    """What the rows of one run contradict, collected a few shards at a time."""

    def __init__(self, run: Mapping[str, Any], plan: pa.Table) -> None:
        """Checks against the settings of `run`, which is its run.json, and the turns that `plan` gives its samples."""
        self._run_id = run["run_id"]
        self._config: Mapping[str, Any] = run["config"]
        self._rules = Rules.of(self._config)
        self._sample_idx = _places(plan)
        self._findings = Findings()

    def see_shard(self, commit: Mapping[str, Any], rows: pa.Table) -> None:
        """Holds the rows of one shard against their commit."""
        named = {"run_id": self._run_id} | {name: commit.get(name) for name in ("shard", "task", "attempt")}
        for name, value in named.items():
            if value is not None:  # commits of some version have no such entry
                wrong = pc.not_equal(rows[name], pa.scalar(value, rows[name].type)).to_numpy()
                of = "run.json" if name == "run_id" else "their commit"
                self._findings.add_rows([(f"{name} is not that of {of}", wrong)], rows)
        self._findings.add_rows([("width is not that of the method and the worker", _other_width(rows, commit))], rows)
        worker = ("worker_id is none of their commit's workers", _other_worker(rows, commit))
        self._findings.add_rows([worker], rows)
        exits = ("exits are not those of the method and the worker", self._other_exits(rows, commit))
        self._findings.add_rows([exits], rows)
        self._see_counts(commit, rows)

    def see_samples(self, samples: pa.Table) -> None:
        """Holds rows against themselves, those of one sample against each other, and scores against texts."""
        columns = Columns(samples)
        self._findings.add_rows(row_findings(columns, self._rules), samples)
        self._findings.add_rows(sample_findings(columns), samples)
        self._findings.add_rows(
            [("order_idx is not the method's turn at this sample", self._other_turn(samples))], samples
        )
        self._findings.add_rows([("correct is not what output_text and reference give", other_score(samples))], samples)
        self._findings.add_rows(stop_findings(samples, self._config), samples)

    def lines(self) -> list[str]:
        """One line for each kind of contradiction that was seen."""
        return self._findings.lines()

    def _see_counts(self, commit: Mapping[str, Any], rows: pa.Table) -> None:
        shard = str(commit["shard"])
        if commit.get("num_rows") not in (None, rows.num_rows):
            self._findings.add("num_rows of a commit is not the number of its rows", 1, shard, "shards")
        if not _same_outcome(commit["outcome"], outcome_of(rows)):
            self._findings.add("outcome of a commit is not what its rows come to", 1, shard, "shards")

    def _other_exits(self, rows: pa.Table, commit: Mapping[str, Any]) -> Mask:
        """Where drafts came from other exits than the worker had for the task; 0 stands for before the first layer."""
        of_methods = commit["worker"].get("draft_exits")
        expected = of_methods.get(commit.get("task")) if isinstance(of_methods, dict) else self._of_exits(commit)
        if not isinstance(expected, dict):
            return np.zeros(rows.num_rows, bool)
        pairs = zip(rows["method"].to_pylist(), rows["exits"].to_pylist(), strict=True)
        return np.array([found is not None and found != expected.get(name, found) for name, found in pairs], bool)

    def _of_exits(self, commit: Mapping[str, Any]) -> dict[str, list[int]] | None:
        """Where each method drafted by a commit of a version that did not store it; None where it cannot be known."""
        of_tasks, decode = commit["worker"].get("exits"), self._config.get("decode")
        exits = of_tasks.get(commit.get("task")) if isinstance(of_tasks, dict) else None
        if not isinstance(exits, list) or not isinstance(decode, dict) or "ngram" not in decode:
            return None
        ngrams = [0] if decode["ngram"] is not None else []
        return {
            name: (ngrams if method.ngrams else []) + (exits if method.exits else [])
            for name, method in METHODS.items()
        }

    def _other_turn(self, samples: pa.Table) -> Mask:
        """Where a method ran in another place than `in_turn` gives it."""
        methods = tuple(self._config["methods"])
        period = 2 * len(methods)
        orders = [{name: idx for idx, name in enumerate(in_turn(methods, turn))} for turn in range(period)]
        names = ("task", "sample_id", "shard", "repeat", "method", "order_idx")
        wrong: list[bool] = []
        for task, sample_id, shard, repeat, method, order_idx in zip(
            *(samples[name].to_pylist() for name in names), strict=True
        ):
            sample_idx = self._sample_idx.get((task, sample_id))
            known = sample_idx is not None and order_idx is not None
            wrong.append(known and orders[(shard + sample_idx + repeat) % period].get(method, order_idx) != order_idx)
        return np.array(wrong, bool)


def folder_lines(run: Mapping[str, Any], commits: Mapping[int, Mapping[str, Any]], plan: pa.Table) -> list[str]:
    """What run.json, the plan and the commits say against each other."""
    lines: list[str] = []
    if commits:  # published tables without their rows may have had their paths shortened
        found = recomputed_fingerprint(run)
        if found != run["fingerprint"]:
            lines.append(f"run.json: its settings and hashes give the fingerprint {found}, not {run['fingerprint']}")
    stored, found = stored_hashes(run).get("plan"), plan_hash(plan)
    if stored not in (None, found):
        lines.append(f"plan.parquet: its hash is {found}, that of the run's plan {stored}")
    unplanned = sorted(set(commits) - set(plan["shard"].to_pylist()))
    if unplanned:
        lines.append(f"commits: {len(unplanned)} of shards that are not planned, first {unplanned[0]}")
    return lines


def stop_findings(samples: pa.Table, config: Mapping[str, Any]) -> Iterator[Wrong]:
    """What is wrong with how rows of a run with the settings `config` ended by its stop strings, a mask of rows each."""
    stops = own_stops(config)
    if not stops and not config.get("task_stops"):
        is_stop = pc.fill_null(pc.equal(samples["finish_reason"], "stop"), False).to_numpy()
        yield "finish_reason is stop, but the run has no stop strings", is_stop
    for string in stops:
        goes_on = pc.fill_null(pc.match_substring(samples["output_text"], string), False).to_numpy()
        yield "output_text goes on at a stop string", goes_on


def other_score(samples: pa.Table) -> Mask:
    """Where `correct` is not what the task's scorer makes of the stored text; nowhere in tasks that are not known."""
    names = ("task", "status", "output_text", "reference", "correct")
    known: dict[tuple[str, str | None, str | None], bool | None] = {}
    wrong: list[bool] = []
    for task, status, text, reference, correct in zip(*(samples[name].to_pylist() for name in names), strict=True):
        if status != "ok" or task not in TASKS:
            wrong.append(False)
            continue
        key = (task, text, reference)
        if key not in known:
            known[key] = _score(*key)
        wrong.append(known[key] is not correct or (known[key] is None and TASKS[task].score is not None))
    return np.array(wrong, bool)


def _score(task: str, text: str | None, reference: str | None) -> bool | None:
    """Whether `text` has the answer; None where nothing is scored or no score can be had."""
    score = TASKS[task].score
    if score is None or text is None or reference is None:
        return None
    try:
        return score(text, reference) == 1.0
    except (ArithmeticError, ValueError):  # a reference that is no answer
        return None


def _places(plan: pa.Table) -> dict[tuple[str, str], int]:
    """The place of every planned sample in its shard."""
    taken: dict[int, int] = {}
    places = {}
    for task, sample_id, shard in zip(
        *(plan[name].to_pylist() for name in ("task", "sample_id", "shard")), strict=True
    ):
        places[task, sample_id] = taken.get(shard, 0)
        taken[shard] = places[task, sample_id] + 1
    return places


def _other_width(rows: pa.Table, commit: Mapping[str, Any]) -> Mask:
    """Where an ok row's steps were not as wide as its method's are on the worker of `commit`."""
    width = commit["worker"].get("width")
    if not isinstance(width, int):
        return np.zeros(rows.num_rows, bool)
    expected = {name: method.step_width(width) for name, method in METHODS.items()}
    found = zip(*(rows[name].to_pylist() for name in ("status", "method", "width")), strict=True)
    return np.array([status == "ok" and w != expected.get(method, w) for status, method, w in found], bool)


def _other_worker(rows: pa.Table, commit: Mapping[str, Any]) -> Mask:
    """Where a row is of no worker of `commit`; a sample that nobody survived is the driver's.

    Commits of a version without `code_hash` may have one of several workers only.
    """
    facts = commit["worker"]
    if "code_hash" not in facts:
        return np.zeros(rows.num_rows, bool)
    others = facts.get("others")
    named = [
        of.get("worker_id") for of in (facts, *(others if isinstance(others, list) else [])) if isinstance(of, dict)
    ]
    found = zip(rows["worker_id"].to_pylist(), rows["status"].to_pylist(), strict=True)
    return np.array([who not in named and (who, status) != (LOST_BY, "error") for who, status in found], bool)


def _same_outcome(stored: Mapping[str, Any], found: ShardOutcome) -> bool:
    """Whether a commit's outcome is that of its rows; seconds up to rounding."""
    counts = dataclasses.asdict(found)
    busy_s = counts.pop("busy_s")
    if any(stored.get(name) != count for name, count in counts.items()):
        return False
    return not differs(np.array([stored.get("busy_s")], float), np.array([busy_s], float), RTOL)[0]
