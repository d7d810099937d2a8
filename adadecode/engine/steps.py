"""The moves of a round: begin, draft, reject early, and at its end verify, or accept all unseen.

Each changes the `Round`'s numbers and tells the decode step what to compute.
"""

import math
from typing import NamedTuple

from adadecode.engine.state import Round
from adadecode.errors import NonFiniteLogitsError
from adadecode.model.step import DecodeStep


class Verdict(NamedTuple):
    """How a round ends: with its first `num_accepted` drafts, then with `next_id`, the last layer's token after them."""

    num_accepted: int
    next_id: int


def begin_round(step: DecodeStep, token_id: int, position: int) -> Round:
    """A round whose slot 0 is the last verified token, before layer 1."""
    step.begin(position)
    step.put(0, [token_id])
    return Round(position, [token_id], [0])


def add_drafts(step: DecodeStep, round_: Round, token_ids: list[int], exit_layer: int) -> None:
    """Parks the current slot and puts the drafts before layer 1; the last of them becomes current."""
    step.put(round_.current + 1, token_ids)
    round_.token_ids += token_ids
    round_.layers_run += [0] * len(token_ids)
    round_.draft_exits += [exit_layer] * len(token_ids)
    assert round_.current < step.width, (round_.current, step.width)
    round_.check()


def reject_after(round_: Round, slot: int) -> None:
    """Drops the drafts after `slot`, which becomes current."""
    round_.dropped += round_.draft_exits[slot:]
    del round_.token_ids[slot + 1 :], round_.layers_run[slot + 1 :], round_.draft_exits[slot:]
    round_.check()


def verify(step: DecodeStep, round_: Round) -> Verdict:
    """The final head over all slots: a draft is accepted iff it equals the argmax before it, and so did all before.

    Ties go to the lowest id. Raises NonFiniteLogitsError when an accepted slot's maximum is NaN or infinite.
    """
    predicted, tops = step.verify(0, round_.current + 1)
    num_accepted = 0
    while num_accepted < round_.num_drafts and round_.token_ids[num_accepted + 1] == predicted[num_accepted]:
        num_accepted += 1
    check_finite(tops[: num_accepted + 1], round_.first_position)
    return Verdict(num_accepted, predicted[num_accepted])


def accept_all(step: DecodeStep, round_: Round) -> Verdict:
    """Every draft, compared with nothing: the final head runs on the current slot alone.

    The paper's ablation `without verification`. What a wrong draft led to stays in the output, so it is not lossless.
    Raises NonFiniteLogitsError as `verify` does.
    """
    [next_id], tops = step.verify(round_.current, round_.current + 1)
    check_finite(tops, round_.first_position + round_.current)
    return Verdict(round_.num_drafts, next_id)


def check_finite(top_logits: list[float], position: int) -> None:
    """Raises NonFiniteLogitsError unless every maximum logit is a number."""
    if not all(map(math.isfinite, top_logits)):
        raise NonFiniteLogitsError(f"logits at position {position} are not finite; try --dtype float32")
