"""One round as a value of whole numbers, and its moves: begin, draft, reject early, verify.

The tensors are the decode step's; a round says which slot holds which token and how many layers that has run.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from adadecode.errors import NonFiniteLogitsError
from adadecode.kernels.step import DecodeStep, Proposals, Segment


@dataclass(slots=True)
class Round:
    """One round: slot 0 holds the last verified token, slot i the i-th draft after it.

    Slot i stands at position `first_position + i` and has run `layers_run[i]` layers; the last slot is the *current*
    one, the others are parked at an exit layer. A later slot that passes a boundary takes every slot parked there along,
    so layers_run never increases with the slot:

        slot          0   1   2   3          3 is current, about to run segment 1;
        layers_run    8   4   4   0          1 and 2 join it when it passes layer 4

    `draft_exits[i]` is the exit layer that proposed the token of slot i + 1, 0 for one before layer 1; there are never
    more than `max_drafts`. `confidences[i]` is how sure that draft is, given that those before it hold. `dropped` holds
    what a deeper head rejected early: each draft's place, 0 for the one after slot 0, its token and its exit layer.
    `layers_passed` counts the layers of all segments so far, each once for all of its slots.
    """

    first_position: int
    max_drafts: int
    token_ids: list[int]
    layers_run: list[int]
    draft_exits: list[int] = field(default_factory=list[int])
    confidences: list[float] = field(default_factory=list[float])
    dropped: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    layers_passed: int = 0

    def check(self) -> None:
        """Asserts the invariants drawn above."""
        assert len(self.token_ids) == len(self.layers_run) == len(self.draft_exits) + 1
        assert len(self.confidences) == len(self.draft_exits), self
        assert self.layers_run == sorted(self.layers_run, reverse=True), self.layers_run
        assert len(self.draft_exits) <= self.max_drafts, self

    def pass_to(self, stop: int) -> Segment:
        """Moves the current slot and all slots at its boundary to boundary `stop`; returns what that must run."""
        layers_run = self.layers_run
        start, hi = layers_run[-1], len(layers_run)
        lo = layers_run.index(start)
        assert lo == 0 or layers_run[lo - 1] >= stop, (layers_run, stop)
        layers_run[lo:] = [stop] * (hi - lo)
        self.layers_passed += stop - start
        return Segment(lo, hi, start, stop)

    def jump_to(self, stop: int) -> None:
        """Moves the current slot to boundary `stop` without running anything; no other slot is at its boundary."""
        self.layers_run[-1] = stop

    @property
    def current(self) -> int:
        """The slot of the current token."""
        return len(self.token_ids) - 1

    @property
    def num_drafts(self) -> int:
        return len(self.draft_exits)

    @property
    def room(self) -> int:
        """How many drafts may follow the current slot."""
        return self.max_drafts - len(self.draft_exits)

    @property
    def chance(self) -> float:
        """The probability that all pending drafts hold, as far as the drafters can tell; 1 without drafts."""
        return math.prod(self.confidences)


def begin_round(step: DecodeStep, token_id: int, position: int, max_drafts: int) -> Round:
    """A round whose slot 0 is the last verified token, before layer 1."""
    step.begin(position)
    step.put(0, [token_id])
    return Round(position, max_drafts, [token_id], [0])


def add_drafts(step: DecodeStep, round_: Round, drafts: Proposals, exit_layer: int) -> None:
    """Parks the current slot and puts `drafts` before layer 1; the last of them becomes current.

    Beside each is the probability that it and those of `drafts` before it hold.
    """
    token_ids = [token_id for token_id, _ in drafts]
    step.put(round_.current + 1, token_ids)
    round_.token_ids += token_ids
    round_.layers_run += [0] * len(drafts)
    round_.draft_exits += [exit_layer] * len(drafts)
    before = 1.0
    for _, together in drafts:
        round_.confidences.append(together / before)
        before = together
    assert round_.current < step.width, (round_.current, step.width)
    round_.check()


def reject_after(round_: Round, slot: int) -> None:
    """Drops the drafts after `slot`, which becomes current."""
    places = range(slot, round_.num_drafts)
    round_.dropped += zip(places, round_.token_ids[slot + 1 :], round_.draft_exits[slot:], strict=True)
    del round_.token_ids[slot + 1 :], round_.layers_run[slot + 1 :]
    del round_.draft_exits[slot:], round_.confidences[slot:]
    round_.check()


def judge_again(round_: Round, lo: int, proposals: Proposals) -> None:
    """Takes the confidence in each draft after slots from `lo` on from what a deeper head proposes there, `proposals`.

    A head that proposes another token leaves the draft the rest of its probability at most.
    """
    for slot in range(lo, round_.current):
        token_id, confidence = proposals[slot - lo]
        if token_id != round_.token_ids[slot + 1]:
            confidence = min(round_.confidences[slot], 1.0 - confidence)
        round_.confidences[slot] = confidence


class Verdict(NamedTuple):
    """How a round ends: with its first `num_accepted` drafts, then with `next_id`, the last layer's token after them."""

    num_accepted: int
    next_id: int


def verify(step: DecodeStep, round_: Round) -> Verdict:
    """The final head over all slots: a draft is accepted iff the model says it too, and all before.

    It says the argmax after the slot before, ties going to the lowest id, or the token drawn there. Raises
    NonFiniteLogitsError when an accepted slot's maximum is NaN or infinite.
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
    Raises NonFiniteLogitsError when the current slot's maximum is NaN or infinite.
    """
    [next_id], tops = step.verify(round_.current, round_.current + 1)
    check_finite(tops, round_.first_position + round_.current)
    return Verdict(round_.num_drafts, next_id)


def check_finite(top_logits: list[float], position: int) -> None:
    """Raises NonFiniteLogitsError unless every maximum logit is a number."""
    if not all(map(math.isfinite, top_logits)):
        raise NonFiniteLogitsError(f"logits at position {position} are not finite; try --dtype float32")
