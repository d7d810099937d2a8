"""A run's rows as they are read, a few shards at a time, held against themselves, their commits, plan and settings.

Everything here needs the folder alone. What it finds are lines; what cannot be recomputed, as for a run of an older
version, has none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.methods import in_turn
from adadecode.report.audit import ROW_CHECKS, RULED_CHECKS
from adadecode.report.checks import Check, Rules
from adadecode.report.findings import Columns, Findings, Mask, Wrong
from adadecode.runs.commits import Shards
from adadecode.runs.score_checks import ScoreChecks
from adadecode.runs.shard_checks import COMMIT_CHECKS, SHARD_CHECKS, CommittedRows
from adadecode.settings import own_stops
from adadecode.tasks import TASKS


@dataclass(frozen=True)
class RunContext:
    """What the rows of a run are held against: its run.json and the places that the plan gives its samples."""

    run: Mapping[str, Any]
    rules: Rules
    places: Mapping[tuple[str, str], int]  # in its shard, by (task, sample)
    scores: pa.Table | None = None  # the SCORES table that it keeps

    @classmethod
    def of(cls, run: Mapping[str, Any], plan: pa.Table, scores: pa.Table | None = None) -> "RunContext":
        """That of `run`, which is its run.json, of its PLAN table and of its SCORES table, where it keeps one."""
        return cls(run, Rules.of(run["config"]), _places(plan), scores)


def order(context: RunContext, samples: pa.Table) -> Iterator[Wrong]:
    """Methods ran in the order that `in_turn` gives them at each sample."""
    yield "order_idx is not the method's turn at this sample", _other_turn(context, samples)


def correctness(_: RunContext, samples: pa.Table) -> Iterator[Wrong]:
    """`correct` is what the task's scorer makes of the stored text."""
    yield "correct is not what output_text and reference give", other_score(samples)


def stops(context: RunContext, samples: pa.Table) -> Iterator[Wrong]:
    """Outputs end at the run's stop strings, and at no others."""
    yield from stop_findings(samples, context.run["config"])


# What the plan, the settings or a task say of rows.
SETTLED_CHECKS: tuple[Check[[RunContext, pa.Table], Wrong], ...] = (
    Check("order", "methods ran in their turns, which alternate from sample to sample", order),
    Check("correct", "`correct` is what the task's scorer makes of `output_text` and `reference`", correctness),
    Check("stops", "outputs end at a stop string only where the run has some, and before the first of them", stops),
)


class RunChecks:
    """What the rows of one run contradict, collected a few shards at a time."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._findings = Findings()
        self._scores = ScoreChecks(context.scores)

    def see_shards(self, shards: Shards) -> None:
        """Holds the rows of `shards` against their commits and the metadata of their files."""
        rows, found = shards.rows, CommittedRows.of(self._context.run, shards)
        for check in SHARD_CHECKS:
            self._findings.add_rows(check.name, check.find(found), rows)
        for check in COMMIT_CHECKS:
            for kind, shard_idx in check.find(found):
                self._findings.add(f"{check.name}: {kind}", 1, str(shard_idx), "shards")

    def see_samples(self, samples: pa.Table) -> None:
        """Holds rows against themselves, those of one sample against each other, and scores against texts."""
        columns = Columns(samples)
        for check in ROW_CHECKS:
            self._findings.add_rows(check.name, check.find(columns), samples)
        for check in RULED_CHECKS:
            self._findings.add_rows(check.name, check.find(columns, self._context.rules), samples)
        for check in SETTLED_CHECKS:
            self._findings.add_rows(check.name, check.find(self._context, samples), samples)
        self._scores.see(samples)

    def lines(self) -> list[str]:
        """One line for each kind of contradiction that was seen, the name of its check first."""
        return self._findings.lines()

    def score_lines(self) -> list[str]:
        """One line for each way in which the scores that the run keeps are not those of the rows that were seen."""
        return self._scores.lines()


def stop_findings(samples: pa.Table, config: Mapping[str, Any]) -> Iterator[Wrong]:
    """What is wrong with how rows of a run with the settings `config` ended by its stop strings, a mask of rows each."""
    strings = own_stops(config)
    texts, names = samples["output_text"], samples["task"].unique().to_pylist()
    goes_on, no_stop = np.zeros(samples.num_rows, bool), np.zeros(samples.num_rows, bool)
    for task in names:
        of_task = pc.equal(samples["task"], task).to_numpy()
        if config.get("task_stops") and task not in TASKS:
            continue
        stops = (*strings, *(TASKS[task].stops if config.get("task_stops") else ()))
        no_stop |= of_task & (not stops)
        for string in stops:
            goes_on |= of_task & pc.fill_null(pc.match_substring(texts, string), False).to_numpy()
    is_stop = pc.fill_null(pc.equal(samples["finish_reason"], "stop"), False).to_numpy()
    yield "finish_reason is stop, but the run has no stop strings", no_stop & is_stop
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


def _other_turn(context: RunContext, samples: pa.Table) -> Mask:
    """Where a method ran in another place than `in_turn` gives it."""
    methods = tuple(context.run["config"]["methods"])
    period = 2 * len(methods)
    orders = [{name: idx for idx, name in enumerate(in_turn(methods, turn))} for turn in range(period)]
    names = ("task", "sample_id", "shard", "repeat", "method", "order_idx")
    wrong: list[bool] = []
    for task, sample_id, shard, repeat, method, order_idx in zip(
        *(samples[name].to_pylist() for name in names), strict=True
    ):
        sample_idx = context.places.get((task, sample_id))
        known = sample_idx is not None and order_idx is not None
        wrong.append(known and orders[(shard + sample_idx + repeat) % period].get(method, order_idx) != order_idx)
    return np.array(wrong, bool)


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
