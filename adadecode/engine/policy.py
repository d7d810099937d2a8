"""Which exits are tested, how sure they must be, and how wide a decode step is."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adadecode.config import DecodeSettings
from adadecode.errors import UsageError

# With 5, 6 or 7 rows a float32 GEMM on two CPU threads gives a row other bits in other slots, and an odd number of rows
# leaves vector tails; multiples of 8 were free of both for every dtype and thread count tried (docs/parity.md).
WIDTH_MULTIPLE = 8


class Drafter(Protocol):
    """Anything that proposes a next token at an exit layer; `ExitHeads` is the real one."""

    @property
    def exits(self) -> tuple[int, ...]: ...

    def propose(self, exit_layer: int, hidden: Tensor, row: int, position: int) -> tuple[int, float]:
        """Token id and confidence in [0, 1] for the token after `position`, from `row` of `hidden` `[W, d]`."""
        ...


@dataclass(frozen=True)
class Policy:
    """Exit layers, the gamma of each, and how many drafts may be pending. No exits is vanilla decoding."""

    exits: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    max_drafts: int = 0

    def __post_init__(self) -> None:
        assert len(self.exits) == len(self.gammas), (self.exits, self.gammas)
        assert list(self.exits) == sorted(set(self.exits)), self.exits


VANILLA = Policy()


def make_policy(settings: DecodeSettings, head_exits: tuple[int, ...]) -> Policy:
    """The policy of `settings` over heads at `head_exits`; raises UsageError for an exit without a head."""
    exits = settings.exits or head_exits
    missing = sorted(set(exits) - set(head_exits))
    if missing:
        raise UsageError(
            f"--exits {','.join(map(str, exits))}: there are no heads at {missing}; "
            f"the heads are at {','.join(map(str, head_exits))}: choose among them or train others"
        )
    return Policy(exits, (settings.gamma,) * len(exits), settings.max_drafts)


def step_width(max_drafts: int) -> int:
    """W, the rows of every decode step: the current token and its drafts, rounded up to a multiple of 8."""
    return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
