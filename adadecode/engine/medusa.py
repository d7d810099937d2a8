"""Medusa (arXiv 2401.10774): heads on the last layer's state draft what follows the token that it predicts.

Their chain is parked before the first layer, as n-grams are, and verified like every draft. Medusa's tree of candidates is
left out: a round has one chain, for all methods alike.
"""

from typing import TYPE_CHECKING

from adadecode.engine.round import Round
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest
from adadecode.model.medusa_heads import MedusaHeads

if TYPE_CHECKING:
    from torch import Tensor


class MedusaDrafter:
    """A drafter at boundary 0: head k's token k places after the newest certain one, with its probability."""

    boundary = 0
    tests: tuple[ExitTest, ...] = ()

    def __init__(self, gamma: float, heads: MedusaHeads, draw: Draw | None = None) -> None:
        """Drafts while all of a chain is right with a probability above `gamma`, say the `heads`; `draw` draws."""
        self.gamma = gamma
        self._heads, self._draw = heads, draw
        self._state: Tensor | None = None

    def extend(self, token_ids: list[int]) -> None:
        """Does nothing: the heads see a state, not tokens."""

    def see(self, step: DecodeStep, slot: int) -> None:
        """Keeps the state `[d]` in `slot`, which has passed all layers: the newest certain token was predicted from it."""
        self._state = step.hidden[slot].clone()

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        """What may follow the current slot, as many tokens as there are heads and room for."""
        assert self._state is not None, "nothing was seen yet"
        chain: Proposals = []
        together = 1.0
        for token_id, confidence in self._heads.proposals(
            self._state, round_.room, self._draw, round_.first_position + 1
        ):
            together *= confidence
            if not together > self.gamma:
                break
            chain.append((token_id, together))
        return chain
