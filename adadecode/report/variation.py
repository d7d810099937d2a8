"""How much of a speed's variation is between workers or repeats: what an interval over prompts of one run cannot show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class Variation:
    """Standard deviations of log values, so 0.02 is about 2 %: between `num_groups` groups, and within them.

    `p_value` is that of the F test for no difference between the groups; None where it cannot be made.
    """

    num_groups: int
    between: float
    within: float
    p_value: float | None


def variation(groups: ArrayLike, values: ArrayLike) -> Variation | None:
    """The variation of positive `values` [n] between and within their `groups`; None with one group, or one value each.

    The components of variance of a one-way layout with random effects (S. Searle, G. Casella, C. McCulloch, Variance
    Components, 1992, section 3.6), that between groups 0 where the estimate is below.
    """
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    logs = np.log(np.asarray(values, np.float64))
    parts = [logs[codes == code] for code in range(codes.max(initial=-1) + 1)]
    if len(parts) < 2 or len(logs) == len(parts):
        return None
    sizes = np.array([len(part) for part in parts])
    means = np.array([part.mean() for part in parts])
    within = sum(float(np.sum((part - part.mean()) ** 2)) for part in parts) / (len(logs) - len(parts))
    between = float(np.sum(sizes * (means - logs.mean()) ** 2)) / (len(parts) - 1)
    usual_size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(parts) - 1)
    component = max(0.0, (between - within) / usual_size)
    p_value = float(stats.f_oneway(*parts).pvalue) if within > 0 else None
    return Variation(len(parts), float(np.sqrt(component)), float(np.sqrt(within)), p_value)


def without_prompts(prompts: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Positive `values` [n] each divided by the geometric mean of its prompt's: what is left when prompts differ."""
    codes = np.unique(np.asarray(prompts), return_inverse=True)[1]
    logs = np.log(np.asarray(values, np.float64))
    return np.exp(logs - (np.bincount(codes, weights=logs) / np.bincount(codes))[codes])
