"""pass@k: the chance that one of k programs of a sample passes (Chen et al. 2021, arXiv 2107.03374, section 2.1)."""

import math
from collections.abc import Sequence

KS = (1, 2, 5, 10, 100)  # those that a sample's repeats allow are told


def pass_at_k(num_programs: int, num_passed: int, k: int) -> float:
    """The unbiased estimate from `num_programs` programs of which `num_passed` pass: 1 - C(n - c, k) / C(n, k)."""
    assert 0 <= num_passed <= num_programs, (num_passed, num_programs)
    assert 1 <= k <= num_programs, (k, num_programs)
    return 1.0 - math.comb(num_programs - num_passed, k) / math.comb(num_programs, k)


def passes(passed: Sequence[float]) -> dict[str, float]:
    """pass@k of a sample whose repeats passed (1.0) or did not, for each k of KS that there are repeats for."""
    num_passed = sum(score == 1.0 for score in passed)
    return {f"pass@{k}": pass_at_k(len(passed), num_passed, k) for k in KS if k <= len(passed)}
