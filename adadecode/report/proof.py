"""What a random draw of rows says of all of them: an upper bound of how many are false, exact, by counting draws."""

import math

from scipy import stats

CONFIDENCE = 0.99


def most_false(num_rows: int, num_drawn: int, num_found: int, confidence: float = CONFIDENCE) -> int:
    """The most of `num_rows` rows that can be false, at this confidence, when a draw of them found `num_found`.

    `num_drawn` rows were drawn without replacement. More false rows than that would have shown more than `num_found` in
    the draw with a probability of at least `confidence` (hypergeometric, so that drawing all rows leaves no doubt).
    """
    assert 0 <= num_found <= num_drawn <= num_rows, (num_found, num_drawn, num_rows)
    low, high = num_found, num_rows - num_drawn + num_found  # the equal rows of the draw are known to be true
    while low < high:
        middle = (low + high + 1) // 2
        if stats.hypergeom.cdf(num_found, num_rows, middle, num_drawn) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


def largest_false_share(num_drawn: int, num_found: int, confidence: float = CONFIDENCE) -> float:
    """The same as a share of however many rows: the upper end of Clopper and Pearson's one-sided binomial interval."""
    if num_found == num_drawn:
        return 1.0
    return float(stats.beta.ppf(confidence, num_found + 1, num_drawn - num_found))


def proof_sentence(num_rows: int, num_drawn: int, num_found: int, confidence: float = CONFIDENCE) -> str:
    """What the draw proves, with its numbers."""
    of_rows = f"{num_drawn} of {num_rows} rows"
    if num_drawn == num_rows:
        return f"{of_rows} were decoded again, which is all of them: {num_found} are false"
    most, share = (
        most_false(num_rows, num_drawn, num_found, confidence),
        largest_false_share(num_drawn, num_found, confidence),
    )
    equal = "all are equal" if not num_found else f"{num_found} differ"
    return (
        f"{of_rows} were decoded again and {equal}: with {100 * confidence:g} % confidence at most {most} rows of this "
        f"run are false ({_percent(most / num_rows)}), and of a run of any length fewer than {_percent(share)}"
    )


def _percent(share: float) -> str:
    """`share` in percent, rounded up: what is claimed holds."""
    return f"{math.ceil(share * 1e4 - 1e-9) / 100:.2f} %"
