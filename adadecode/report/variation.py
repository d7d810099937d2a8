"""How much of a speed's variation is between workers or repeats: what an interval over prompts of one run cannot show."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from adadecode.report.findings import Columns


@dataclass(frozen=True)
class Variation:
    """Standard deviations of log values, so 0.02 is about 2 %: between `num_groups` groups, and within them.

    `p_value` is that of the F test for no difference between the groups; None where it cannot be made.
    """

    num_groups: int
    between: float
    within: float
    p_value: float | None


def variation(groups: ArrayLike, values: ArrayLike, prompts: ArrayLike | None = None) -> Variation | None:
    """The variation of positive `values` [n] between and within their `groups`; None with too few of either.

    Where every group measured the same `prompts`, what these differ in is taken out first. The components of variance of a
    layout with random effects (S. Searle, G. Casella, C. McCulloch, Variance Components, 1992, chapter 3), that between
    groups 0 where its estimate is below.
    """
    codes, logs = _codes(groups), np.log(np.asarray(values, np.float64))
    num_groups, num_taken = int(codes.max(initial=-1)) + 1, 0
    if prompts is not None:
        of_prompt = _codes(prompts)
        logs = logs - _means(of_prompt, logs)[of_prompt]
        num_taken = int(of_prompt.max(initial=0))
    freedom = len(logs) - num_groups - num_taken
    if num_groups < 2 or freedom < 1:
        return None
    sizes, means = np.bincount(codes), _means(codes, logs)
    within = float(np.sum((logs - means[codes]) ** 2)) / freedom
    between = float(np.sum(sizes * (means - logs.mean()) ** 2)) / (num_groups - 1)
    usual_size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (num_groups - 1)
    p_value = float(stats.f.sf(between / within, num_groups - 1, freedom)) if within > 0 else None
    return Variation(num_groups, max(0.0, (between - within) / usual_size) ** 0.5, within**0.5, p_value)


def between_workers(rows: pa.Table) -> Variation | None:
    """The variation of TPOT between the workers of SAMPLES `rows` of one task and method: they decode other prompts."""
    columns = Columns(rows)
    times = columns.numbers("tpot_s")
    measured = np.isfinite(times)
    return variation(columns.codes("worker_id")[measured], times[measured])


def between_repeats(rows: pa.Table) -> Variation | None:
    """The variation of e2e between the repeats of SAMPLES `rows` of one task and method: they decode the same prompts.

    None where tokens are drawn: other outputs take other times.
    """
    columns = Columns(rows)
    if columns.has("sampling_key").any():
        return None
    times = columns.numbers("e2e_s")
    measured = np.isfinite(times)
    prompts = columns.codes("task", "sample_id", "turn")[measured]
    return variation(columns.codes("repeat")[measured], times[measured], prompts)


def _codes(names: ArrayLike) -> NDArray[np.int64]:
    return np.unique(np.asarray(names), return_inverse=True)[1]


def _means(codes: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(codes, weights=values) / np.bincount(codes)
