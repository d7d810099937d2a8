"""The moves of a round: begin, draft, reject early, verify.

Each changes the `Round`'s numbers and tells the decode step what to compute.
"""

import math
from typing import NamedTuple

from adadecode.engine.state import Round
from adadecode.errors import NonFiniteLogitsError
from adadecode.model.step import DecodeStep


class Verdict(NamedTuple):
    """What the last layer says: the next token of every slot, and how many drafts it accepts."""

    predicted: list[int]
    num_accepted: int


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
    predicted, tops = step.verify(round_.current + 1)
    num_accepted = 0
    while num_accepted < round_.num_drafts and round_.token_ids[num_accepted + 1] == predicted[num_accepted]:
        num_accepted += 1
    check_finite(tops[: num_accepted + 1], round_.first_position)
    return Verdict(predicted, num_accepted)


def check_finite(top_logits: list[float], position: int) -> None:
    """Raises NonFiniteLogitsError unless every maximum logit is a number."""
    if not all(map(math.isfinite, top_logits)):
        raise NonFiniteLogitsError(f"logits at position {position} are not finite; try --dtype float32")
