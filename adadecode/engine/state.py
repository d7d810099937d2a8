"""The state of one round, whole numbers only; the tensors are the decode step's."""

from dataclasses import dataclass, field

from adadecode.model.step import Segment


@dataclass
class Round:
    """One round: slot 0 holds the last verified token, slot i the i-th draft after it.

    Slot i stands at position `first_position + i` and has run `layers_run[i]` layers; the last slot is the *current*
    one, the others are parked at an exit layer. A later slot that passes a boundary takes every slot parked there along,
    so layers_run never increases with the slot:

        slot          0   1   2   3          3 is current, about to run segment 1;
        layers_run    8   4   4   0          1 and 2 join it when it passes layer 4

    `draft_exits[i]` is the exit layer that proposed the token of slot i + 1, 0 for the n-gram drafter. `dropped` holds
    those of drafts that a deeper head rejected early.
    """

    first_position: int
    token_ids: list[int]
    layers_run: list[int]
    draft_exits: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Asserts the invariants drawn above."""
        assert len(self.token_ids) == len(self.layers_run) == len(self.draft_exits) + 1
        assert self.layers_run == sorted(self.layers_run, reverse=True), self.layers_run

    def pass_to(self, stop: int) -> Segment:
        """Moves the current slot and all slots at its boundary to boundary `stop`; returns what that must run."""
        layers_run = self.layers_run
        start, hi = layers_run[-1], len(layers_run)
        lo = layers_run.index(start)
        assert lo == 0 or layers_run[lo - 1] >= stop, (layers_run, stop)
        layers_run[lo:] = [stop] * (hi - lo)
        return Segment(lo, hi, start, stop)

    @property
    def current(self) -> int:
        """The slot of the current token."""
        return len(self.token_ids) - 1

    @property
    def num_drafts(self) -> int:
        return len(self.draft_exits)
