"""Which exits are tested, how sure they must be, and how wide a decode step is."""

from collections.abc import Collection
from typing import Protocol

from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest


class Drafter(Protocol):
    """Anything that proposes next tokens at an exit layer; `ExitHeads` is the real one."""

    @property
    def exits(self) -> tuple[int, ...]: ...

    @property
    def tests(self) -> Collection[ExitTest]:
        """What `propose` may test, one for each of `exits`, for the step to prepare."""
        ...

    def propose(self, step: DecodeStep, segment: Segment, first_tested: int, first_position: int) -> Proposals | None:
        """Runs `segment`, which ends at an exit layer; then, for the token after each of slots [first_tested, hi), its
        id and confidence in [0, 1].

        Slot i stands at `first_position + i`. None when one slot alone is not worth a test, says a gate.
        """
        ...


class TokenDrafter(Protocol):
    """Anything that proposes tokens from tokens alone; `NgramDrafter` is the real one."""

    def extend(self, token_ids: list[int]) -> None:
        """Adds verified tokens to the sequence."""
        ...

    def propose(self, drafts: list[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` tokens to follow the sequence and the pending `drafts`."""
        ...
