"""The scores that a run keeps against those that its tasks' scorers give its rows now."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.report.findings import RTOL, Findings, Mask, differs
from adadecode.report.schema import SCORES
from adadecode.report.scores import KEY
from adadecode.runs.scores import SomeScores, kept_scores
from adadecode.scoring.scorer import Scorer, always_there
from adadecode.tasks import TASKS

KEYS = list(KEY)
NO_REPEAT = -1  # of a score over all repeats, as a join has it, which takes no null for another


class ScoreChecks:
    """Scores the rows of a run as they are read, and holds what the run keeps against that.

    What only running a program tells is taken as it is kept for the same output, and a scorer that needs a package is not
    run: then outputs and hashes are compared. Scores by another version of a scorer are left alone.
    """

    def __init__(self, kept: pa.Table | None) -> None:
        """`kept` is the SCORES table of the run; None: nothing is compared."""
        self._kept, self._given = kept, [SCORES.empty_table()]
        self._scorers: dict[str, Scorer | None] = {}

    def see(self, samples: pa.Table) -> None:
        """Scores the ok rows of `samples`, all repeats of a sample among them."""
        if self._kept is None:
            return
        for task in samples["task"].unique().to_pylist():
            if task not in self._scorers:
                self._scorers[task] = _scorer(task, self._kept)
            scorer = self._scorers[task]
            if scorer is not None:
                some = SomeScores(scorer, None, kept_scores(self._kept) if scorer.is_unsafe else {})
                some.see(samples.filter(pc.equal(samples["task"], task)))
                self._given.append(some.table())

    def lines(self) -> list[str]:
        """A line for each kind of what is kept that the rows do not give."""
        if self._kept is None:
            return []
        scorers = {task: scorer for task, scorer in self._scorers.items() if scorer is not None}
        of_tasks = self._kept.filter(pc.is_in(self._kept["task"], pa.array(list(scorers), pa.string())))
        both = _beside(pa.concat_tables(self._given), of_tasks)
        is_given, is_kept = (both[name].is_valid().to_numpy() for name in ("given", "given_kept"))
        same_output = pc.fill_null(pc.equal(both["output_hash"], both["output_hash_kept"]), False).to_numpy()
        same_output |= ~both["output_hash"].is_valid().to_numpy() & ~both["output_hash_kept"].is_valid().to_numpy()
        rescored = [task for task, scorer in scorers.items() if scorer.missing is always_there]
        scores, kept = (both[name].to_numpy(zero_copy_only=False) for name in ("score", "score_kept"))
        unlike: Mask = differs(scores, kept, RTOL) & pc.is_in(both["task"], pa.array(rescored, pa.string())).to_numpy()
        findings = Findings()
        kinds = [
            ("a score is missing", is_given & ~is_kept),
            ("a score is of no output", is_kept & ~is_given),
            ("output_hash is not that of the output", is_given & is_kept & ~same_output),
            ("a score is not what the scorer gives", is_given & is_kept & same_output & unlike),
        ]
        findings.add_rows("scores.parquet", kinds, both)
        return findings.lines()


def _scorer(task: str, kept: pa.Table) -> Scorer | None:
    """What scores the outputs of `task`; None where nothing does, or another version did."""
    scorer = TASKS[task].scorer if task in TASKS else None
    if scorer is None:
        return None
    of_task = kept.filter(pc.equal(kept["task"], task))
    names, versions = (set(of_task[name].to_pylist()) for name in ("scorer", "scorer_version"))
    if not names <= {scorer.name} or not versions <= {scorer.version}:
        return None
    if scorer.missing is always_there:
        return scorer
    # one that may have lacked its package, and takes long: that its scores are there is all that is asked
    return replace(scorer, score=lambda *_: dict.fromkeys(scorer.metrics, np.nan)) if of_task.num_rows else None


def _beside(given: pa.Table, kept: pa.Table) -> pa.Table:
    """Each score that the rows give and each that is kept, those of one row beside each other, in order."""
    sides: list[pa.Table] = []
    for scores in (given, kept):
        repeat = pc.fill_null(scores["repeat"], NO_REPEAT)
        side = scores.select([*KEYS, "score", "output_hash"]).set_column(KEYS.index("repeat"), "repeat", repeat)
        sides.append(side.append_column("given", pa.array(np.ones(scores.num_rows, bool))))
    both = sides[0].join(sides[1], KEYS, join_type="full outer", right_suffix="_kept")
    return both.sort_by([(name, "ascending") for name in KEYS])
