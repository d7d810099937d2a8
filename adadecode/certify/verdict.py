"""The verdict: whether the candidate differs more from the baseline than the baseline differs from itself.

A baseline that repeated itself on every prompt is deterministic, and one other output contradicts exactness. One that did
not is compared by a permutation test: if the candidate were such a server too, the 2P outputs of a prompt, P of each, would
be exchangeable, so which P are called the candidate's would not matter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adadecode.certify.compare import BASELINE, CANDIDATE, Row, by_sample, has_ids, is_other

LEVEL = 0.01  # of the test: of exact servers as unsteady as their baseline so many are called different
NUM_PERMUTATIONS = 9999
SEED = 0
ROUNDING = 1e-9

Outcome = Literal["exact", "not more", "differs", "unproved"]


@dataclass(frozen=True)
class Verdict:
    """What the outputs say. Prompts count in which one of the two could be compared.

    `num_prompts` had an output of both in some pass, and of these `num_differ` another in some; `num_repeated` had two
    of the baseline, and of these `num_unsteady` more than one. `p_value` is that of the test, over the `num_tested`
    prompts with all outputs; None where the baseline repeated itself, so that none was needed.
    """

    outcome: Outcome
    num_prompts: int
    num_differ: int
    num_repeated: int
    num_unsteady: int
    num_tested: int
    p_value: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields, as run.json holds them."""
        return {**asdict(self), "level": LEVEL}


def verdict_of(rows: Iterable[Row], passes: int) -> Verdict:
    """The verdict over `rows` of `passes` passes."""
    samples = list(by_sample(rows).values())
    outputs = [_codes(of_sample) for of_sample in samples]
    both = [found for of_sample in samples if (found := _differs(of_sample, passes)) is not None]
    repeated = [found for of_sample in samples if (found := _is_unsteady(of_sample)) is not None]
    num_prompts, num_differ = len(both), sum(both)
    whole = [
        [codes[method, repeat] for method in (BASELINE, CANDIDATE) for repeat in range(passes)]
        for codes in outputs
        if len(codes) == 2 * passes
    ]
    p_value = permutation_p(np.array(whole).reshape(-1, 2 * passes)) if any(repeated) else None
    outcome = _outcome(num_prompts, num_differ, len(repeated), sum(repeated), p_value)
    return Verdict(outcome, num_prompts, num_differ, len(repeated), sum(repeated), len(whole), p_value)


def _outcome(num_prompts: int, num_differ: int, num_repeated: int, num_unsteady: int, p_value: float | None) -> Outcome:
    if not num_prompts or not num_repeated:
        return "unproved"
    if not num_unsteady:
        return "differs" if num_differ else "exact"
    assert p_value is not None
    return "differs" if p_value <= LEVEL else "not more"


def permutation_p(outputs: NDArray[np.int64]) -> float:
    """The p-value of the one-sided permutation test over `outputs` [prompts, 2P], equal where the outputs are.

    The first P columns are the baseline's. The statistic is the sum over prompts of `excess`. Of all ways to call P of a
    prompt's outputs the candidate's, NUM_PERMUTATIONS are drawn; the observed one counts among them, so the p-value is
    never 0 and the level holds exactly (B. Phipson, G. Smyth, Permutation p-values should never be zero, 2010).
    """
    drawn = np.random.default_rng(SEED)
    unequal = [row for row in outputs if (row != row[0]).any()]  # the others are 0 in whatever order
    observed = sum(float(excess(row[None])[0]) for row in unequal)
    totals = np.zeros(NUM_PERMUTATIONS)
    for row in unequal:
        totals += excess(drawn.permuted(np.tile(row, (NUM_PERMUTATIONS, 1)), axis=1))
    return float((1 + np.count_nonzero(totals >= observed - ROUNDING)) / (1 + NUM_PERMUTATIONS))


def excess(outputs: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much oftener a candidate's output differs from a baseline's than two of the baseline differ: [n] of [n, 2P].

    Both are shares of the pairs there are: P x P, and P (P - 1) / 2.
    """
    passes = outputs.shape[1] // 2
    baseline, candidate = outputs[:, :passes], outputs[:, passes:]
    between = (baseline[:, :, None] != candidate[:, None, :]).mean(axis=(1, 2))
    first, second = np.triu_indices(passes, 1)
    return between - (baseline[:, first] != baseline[:, second]).mean(axis=1)


def _codes(of_sample: Mapping[tuple[str, int], Row]) -> dict[tuple[str, int], int]:
    """A number for each output of a prompt, equal where the outputs are; texts are compared unless all have ids."""
    by_ids = has_ids(*of_sample.values())
    numbers: dict[Any, int] = {}
    return {
        key: numbers.setdefault(
            (tuple(row["output_token_ids"]) if by_ids else row["output_text"], row["finish_reason"]), len(numbers)
        )
        for key, row in of_sample.items()
    }


def _differs(of_sample: Mapping[tuple[str, int], Row], passes: int) -> bool | None:
    """Whether the candidate's output is another than the baseline's in some pass; None where no pass has both."""
    pairs = [
        (of_sample[CANDIDATE, repeat], of_sample[BASELINE, repeat])
        for repeat in range(passes)
        if (BASELINE, repeat) in of_sample and (CANDIDATE, repeat) in of_sample
    ]
    return any(is_other(ours, theirs) for ours, theirs in pairs) if pairs else None


def _is_unsteady(of_sample: Mapping[tuple[str, int], Row]) -> bool | None:
    """Whether the baseline has another output in some pass than in its first that has one; None where it has one alone."""
    own = [row for (method, _), row in of_sample.items() if method == BASELINE]
    return any(is_other(row, own[0]) for row in own[1:]) if len(own) > 1 else None
