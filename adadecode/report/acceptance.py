"""What each round of an output accepted, under the names that serving engines give it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adadecode.settings import MAX_DRAFTS


def accepted_per_round(draft_depths: Sequence[int]) -> list[int]:
    """How many drafts each round after the prefill accepted, from the depth at which each output token was drafted.

    A round ends with the token that the whole model gave, whose depth no draft has; the first token is the prefill's.
    """
    depths = np.asarray(draft_depths, np.int64)
    given = np.flatnonzero(depths == depths.max(initial=0))
    return (np.diff(given) - 1).tolist()


def speculative_decoding(row: Mapping[str, Any], most_drafts: int | None) -> dict[str, Any] | None:
    """The record that vLLM calls `metrics.speculative_decoding` of a SAMPLES row, detailed; None where it has none.

    So have rows of methods that draft nothing, whose drafts nothing verified, or whose rounds their library does not
    tell. Rounds without a draft count too, among those that accepted none, as a row does not say which they are.
    `num_accepted_tokens_per_pos` counts the rounds that accepted the draft at each position, from the first on.
    """
    depths, num_rounds, num_drafted = row["draft_depths"], row["num_rounds"], row["num_drafted"]
    if depths is None or num_rounds is None or num_drafted is None or row["lossy"] or not len(depths):
        return None
    rounds = accepted_per_round(depths)
    if len(rounds) != num_rounds or sum(rounds) != row["num_accepted"]:
        return None  # a row that contradicts itself, which `verify` tells
    known = (
        most_drafts if most_drafts is not None and 0 <= most_drafts <= MAX_DRAFTS else None
    )  # else somebody altered it
    histogram = np.bincount(np.array(rounds, np.int64), minlength=1 + (known or 0)).tolist()
    return {
        "mean_acceptance_length": 1 + sum(rounds) / num_rounds if num_rounds else 1.0,
        "draft_acceptance_rate": sum(rounds) / num_drafted if num_drafted else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": num_rounds,
        "num_accepted_draft_tokens": sum(rounds),
        "num_draft_tokens": num_drafted,
        "num_spec_tokens": known,
        "num_accepted_tokens_per_pos": [sum(histogram[place + 1 :]) for place in range(len(histogram) - 1)],
        "per_step_accepted": rounds,
    }
