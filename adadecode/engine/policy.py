"""Which exits are tested, how sure they must be, and how wide a decode step is."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from adadecode.config import DecodeSettings
from adadecode.errors import UsageError
from adadecode.model.exit_heads import paper_exits
from adadecode.model.layers import ExitTest
from adadecode.model.step import DecodeStep, Proposals, Segment

# With 5, 6 or 7 rows a float32 GEMM on two CPU threads gives a row other bits in other slots, and an odd number of rows
# leaves vector tails; multiples of 8 were free of both for every dtype and thread count tried (docs/parity.md).
WIDTH_MULTIPLE = 8


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


@dataclass(frozen=True)
class Policy:
    """What is drafted when. No exits and no n-grams is vanilla decoding.

    `exits` are tested with a gamma each; at most `max_drafts` drafts are pending; `reject` is the confidence with which
    a deeper head rejects a draft early, None for never; `ngram` the gamma of the n-gram drafter, None for none.
    """

    exits: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    max_drafts: int = 0
    reject: float | None = None
    ngram: float | None = None

    def __post_init__(self) -> None:
        assert len(self.exits) == len(self.gammas), (self.exits, self.gammas)
        assert list(self.exits) == sorted(set(self.exits)), self.exits

    def gamma_at(self, exit_layer: int) -> float:
        return self.gammas[self.exits.index(exit_layer)]

    @property
    def draft_exits(self) -> tuple[int, ...]:
        """Where drafts may come from: the exits, and 0 for the n-gram drafter."""
        return self.exits if self.ngram is None else (0, *self.exits)


VANILLA = Policy()


def make_policy(settings: DecodeSettings, head_exits: tuple[int, ...], num_layers: int) -> Policy:
    """The policy of `settings` for a model of L layers with heads at `head_exits`; raises UsageError for one it lacks.

    Without exits of its own it takes the paper's where there are heads for all of them, else all that have heads.
    """
    papers = paper_exits(num_layers)
    exits = settings.exits or (papers if papers and set(papers) <= set(head_exits) else head_exits)
    missing = sorted(set(exits) - set(head_exits))
    if missing:
        raise UsageError(
            f"--exits {','.join(map(str, exits))}: there are no heads at {missing}; "
            f"the heads are at {','.join(map(str, head_exits))}: choose among them or train others"
        )
    gammas = settings.gamma if isinstance(settings.gamma, tuple) else (settings.gamma,) * len(exits)
    if len(gammas) != len(exits):
        raise UsageError(
            f"--gamma {','.join(map(str, gammas))}: {len(gammas)} thresholds for the {len(exits)} exits "
            f"{','.join(map(str, exits))}; give one for all or one for each"
        )
    return Policy(exits, gammas, settings.max_drafts, settings.reject, settings.ngram)


def step_width(max_drafts: int) -> int:
    """W, the rows of every decode step: the current token and its drafts, rounded up to a multiple of 8."""
    return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
