"""scores.parquet: what the tasks' scorers make of the committed rows, which can be made again without decoding.

Of one sample equal outputs are scored once, so that they have equal scores. What only running a model's programs tells is
kept from before, as long as the output is the same, until programs are allowed to run again.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.errors import EXIT_MISMATCH, EXIT_OK, RunFolderError, UsageError
from adadecode.files import short_hash
from adadecode.printable import on_one_line
from adadecode.report.findings import row_name
from adadecode.report.parity import recompute_parity
from adadecode.report.schema import SCORES
from adadecode.report.scores import KEY, score_findings
from adadecode.runs.commits import Shards
from adadecode.runs.folder import RunFolder, committed_tables, read_commits, shards_of
from adadecode.runs.storage import Storage, open_storage
from adadecode.runs.typed import typed_table
from adadecode.scoring.scorer import RunProgram, Scored, Scorer
from adadecode.tasks import TASKS

SCORES_FILE = "scores.parquet"
ROW = ("task", "sample_id", "turn", "method", "repeat", "output_text", "reference")


Kept = Mapping[tuple[Any, ...], Scored]  # scores of before, by `_kept_key`


@dataclass(frozen=True)
class RunScores:
    """The SCORES table of a run, what was not scored and why, and where scores contradict the run's rows."""

    table: pa.Table
    notes: Sequence[str]
    contradictions: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        """3 where equal outputs have other scores, else 0: a score that could not be had is a null with its reason."""
        return EXIT_MISMATCH if self.contradictions else EXIT_OK


def score_run(location: str | Path, run_program: RunProgram | None = None) -> RunScores:
    """Scores the committed rows of the run at `location` and writes scores.parquet; decodes nothing.

    Raises RunFolderError where there is no run or none with rows, and UsageError where no task of it has a scorer, or one
    lacks the package that it needs.
    """
    folder, commits = RunFolder(location), read_commits(location)
    if not commits:
        raise RunFolderError(f"{str(location)!r}: it has no committed rows; run its command to have them")
    scorers = scorers_of(commits)
    if not scorers:
        tasks = ", ".join(dict.fromkeys(str(commit.get("task")) for commit in commits.values()))
        raise UsageError(f"{str(location)!r}: nothing to score, as task {tasks} has no scorer")
    for task, scorer in scorers.items():
        if (line := scorer.missing()) is not None:
            raise UsageError(f"task {task}: {line}")
    if run_program is not None and not any(scorer.is_unsafe for scorer in scorers.values()):
        raise UsageError("--allow-code-execution: no task of this run is scored by running outputs; leave it out")
    scores = score_commits(folder.location, commits, run_program)
    verify = [recompute_parity(rows) for rows in committed_tables(folder.location, commits)]
    changed = _changed_lines(stored_scores(folder.storage), scores.table)
    folder.write_table(SCORES_FILE, scores.table)
    contradictions = score_findings(scores.table, pa.concat_tables(verify).combine_chunks())
    return replace(scores, notes=[*scores.notes, *changed], contradictions=contradictions)


def score_commits(
    location: str, commits: Mapping[int, dict[str, Any]], run_program: RunProgram | None = None
) -> RunScores:
    """The scores of the ok rows of `commits`, a few shards in memory at a time; writes nothing.

    Without `run_program` no program of a model is run: such scores are those that are stored already, for the same
    outputs by the same version of the scorer, or there are none. Raises RunFolderError when a committed file is missing
    or altered.
    """
    scorers = scorers_of(commits)
    missing = {task: line for task, scorer in scorers.items() if (line := scorer.missing()) is not None}
    usable = {task: scorer for task, scorer in scorers.items() if task not in missing}
    scored = {idx: commit for idx, commit in commits.items() if commit.get("task") in usable}
    kept = _kept(location) if run_program is None and any(s.is_unsafe for s in usable.values()) else {}
    tables, num_unscored = [SCORES.empty_table()], dict.fromkeys(usable, 0)
    for task, rows in _by_task(shards_of(location, scored)):
        some = SomeScores(usable[task], run_program, kept)
        some.see(rows)
        tables.append(some.table())
        num_unscored[task] += some.num_unscored
    notes = [f"{task} is not scored: {line}" for task, line in missing.items()]
    notes += [
        f"{task}: {count} outputs have no score, which takes running them: adadecode score RUN --allow-code-execution"
        for task, count in num_unscored.items()
        if count
    ]
    return RunScores(pa.concat_tables(tables).combine_chunks(), notes)


def _by_task(batches: Iterable[Shards]) -> Iterator[tuple[str, pa.Table]]:
    """The rows of shards by the task that their commits name, whole shards in each table, in their order."""
    for shards in batches:
        starts, tasks = np.cumsum([0, *shards.num_rows]), [commit["task"] for commit in shards.commits]
        for task, places in groupby(range(len(tasks)), tasks.__getitem__):
            idxs = list(places)
            start, stop = int(starts[idxs[0]]), int(starts[idxs[-1] + 1])
            yield task, shards.rows.slice(start, stop - start)


def scorers_of(commits: Mapping[int, Mapping[str, Any]]) -> dict[str, Scorer]:
    """The scorers of the tasks in `commits`, of those that have one."""
    tasks = dict.fromkeys(str(commit.get("task")) for commit in commits.values())
    return {task: scorer for task in tasks if task in TASKS and (scorer := TASKS[task].scorer) is not None}


def stored_scores(storage: Storage) -> pa.Table | None:
    """The SCORES table that a run keeps; None where it has none that can be read, so that it is made anew."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return typed_table(storage.read(SCORES_FILE), SCORES).select(SCORES.names)
    return None


def _changed_lines(before: pa.Table | None, now: pa.Table) -> list[str]:
    """A line where the same version of a scorer gave the same output another score before; none where it did not."""
    if before is None:
        return []
    same = [*KEY, "scorer", "scorer_version", "output_hash"]
    both = now.select([*same, "score"]).join(
        before.select([*same, "score"]), same, join_type="inner", right_suffix="_before"
    )
    changed = both.filter(pc.fill_null(pc.not_equal(both["score"], both["score_before"]), False))
    if not changed.num_rows:
        return []
    first = row_name(changed.sort_by([(name, "ascending") for name in KEY]), 0)
    return [f"{changed.num_rows} scores are not those that the same version of the scorer gave before, first {first}"]


@dataclass
class SomeScores:
    """The scores of the rows of some shards of a task, all repeats and methods of a sample among them."""

    scorer: Scorer
    run_program: RunProgram | None
    kept: Kept
    num_unscored: int = 0
    _lines: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    _known: dict[tuple[str | None, str | None], Mapping[str, Scored] | None] = field(default_factory=dict)

    def see(self, rows: pa.Table) -> None:
        """Scores the ok rows of `rows`."""
        ok = rows.filter(pc.equal(rows["status"], "ok")).select(ROW)
        repeats: dict[tuple[str, str, int, str], list[Mapping[str, Scored]]] = {}
        for task, sample_id, turn, method, repeat, text, reference in zip(
            *(ok[name].to_pylist() for name in ROW), strict=True
        ):
            scores = self._scores(text, reference)
            if scores is None:
                self.num_unscored += 1
                continue
            repeats.setdefault((task, sample_id, turn, method), []).append(scores)
            output = output_hash(text, reference)
            self._lines += [
                (task, sample_id, turn, method, repeat, metric, *scored, output) for metric, scored in scores.items()
            ]
        for key, of_repeats in repeats.items():
            self._lines += [
                (*key, None, metric, *scored, None) for metric, scored in _over_repeats(self.scorer, of_repeats).items()
            ]

    def table(self) -> pa.Table:
        """The SCORES table of what was seen."""
        names = (*KEY, "score", "reason", "output_hash")
        columns = {name: [line[idx] for line in self._lines] for idx, name in enumerate(names)}
        columns["scorer"] = [self.scorer.name] * len(self._lines)
        columns["scorer_version"] = [self.scorer.version] * len(self._lines)
        return pa.table({name: columns[name] for name in SCORES.names}, schema=SCORES)

    def _scores(self, text: str | None, reference: str | None) -> Mapping[str, Scored] | None:
        """The scores of an output by metric, of equal ones the same; None where a program would have to run and may not."""
        key = (text, reference)
        if key not in self._known:
            self._known[key] = self._scores_anew(text, reference)
        return self._known[key]

    def _scores_anew(self, text: str | None, reference: str | None) -> Mapping[str, Scored] | None:
        if text is None or reference is None:
            lacking = "output_text" if text is None else "reference"
            return dict.fromkeys(self.scorer.metrics, Scored(None, f"the row has no {lacking}"))
        if self.scorer.program is not None and self.run_program is None:
            (metric,) = self.scorer.metrics
            kept = self.kept.get(_kept_key(self.scorer, output_hash(text, reference)))
            return None if kept is None else {metric: kept}
        try:
            if self.scorer.program is None:
                return _safe_scores(self.scorer, text, reference)
            assert self.run_program is not None
            return {self.scorer.metrics[0]: self.run_program(self.scorer.program(text, reference))}
        except Exception as error:  # whatever a scorer stumbles over in one text: the others go on
            return dict.fromkeys(self.scorer.metrics, Scored(None, f"{type(error).__name__}: {on_one_line(error)}"))


def output_hash(text: str | None, reference: str | None) -> str:
    """A hash of what is scored: an output and its reference."""
    return short_hash(f"{text}\0{reference}")


def _safe_scores(scorer: Scorer, text: str, reference: str) -> dict[str, Scored]:
    assert scorer.score is not None, scorer.name
    scores = scorer.score(text, reference)
    return {
        metric: Scored(value) if np.isfinite(value := float(scores[metric])) else Scored(None, f"the score is {value}")
        for metric in scorer.metrics
    }


def _over_repeats(scorer: Scorer, of_repeats: Sequence[Mapping[str, Scored]]) -> dict[str, Scored]:
    """The further metrics of a sample; of one whose repeats lack a score there are none."""
    (first, *_) = scorer.metrics
    scores = [scored[first].score for scored in of_repeats]
    if scorer.over_repeats is None or None in scores:
        return {}
    return {
        metric: Scored(value) for metric, value in scorer.over_repeats([s for s in scores if s is not None]).items()
    }


def _kept(location: str) -> Kept:
    """The scores that the run keeps, by scorer, version and output."""
    table = stored_scores(open_storage(location))
    return {} if table is None else kept_scores(table)


def kept_scores(table: pa.Table) -> Kept:
    """The scores in a SCORES table, by scorer, version and output."""
    names = ("scorer", "scorer_version", "output_hash", "score", "reason")
    of_outputs = table.filter(pc.is_valid(table["output_hash"]))
    rows = zip(*(of_outputs[name].to_pylist() for name in names), strict=True)
    return {tuple(key): Scored(score, reason) for *key, score, reason in rows}


def _kept_key(scorer: Scorer, output: str) -> tuple[Any, ...]:
    return scorer.name, scorer.version, output
