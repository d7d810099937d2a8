"""Which exits are tested, how sure they must be, and how wide a decode step is."""

from dataclasses import dataclass, replace

from adadecode.errors import UsageError
from adadecode.methods import Method
from adadecode.settings import DecodeSettings, Stop

# With 5, 6 or 7 rows a float32 GEMM on two CPU threads gives a row other bits in other slots, and an odd number of rows
# leaves vector tails; multiples of 8 were free of both for every dtype and thread count tried (docs/parity.md).
WIDTH_MULTIPLE = 8


def step_width(max_drafts: int) -> int:
    """W, the rows of every decode step: the current token and its drafts, rounded up to a multiple of 8."""
    return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


@dataclass(frozen=True)
class Policy:
    """How rounds go: what is drafted when, in steps of how many rows. No exits and no n-grams is vanilla decoding.

    `exits` are tested with a gamma each; at most `max_drafts` drafts are pending; `reject` is the confidence with which
    a deeper head rejects a draft early, None for never; `ngram` the gamma of the n-gram drafter, None for none, which
    consults the store beside the heads with `ngram_store`. `stop` says what must exceed a gamma: how sure the `token` is,
    or the `chain` of all pending drafts with it. `rows` stand in a decode step, None for as many as `max_drafts` needs.
    Drafts that are not `verified` are kept as they are.
    """

    exits: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    max_drafts: int = 0
    reject: float | None = None
    ngram: float | None = None
    stop: Stop = "token"
    ngram_store: bool = True
    rows: int | None = None
    verified: bool = True

    def __post_init__(self) -> None:
        assert len(self.exits) == len(self.gammas), (self.exits, self.gammas)
        assert list(self.exits) == sorted(set(self.exits)), self.exits
        assert self.max_drafts < self.width, self

    @property
    def width(self) -> int:
        """W, the rows of every decode step."""
        return self.rows or step_width(self.max_drafts)

    @property
    def draft_exits(self) -> tuple[int, ...]:
        """Where drafts may come from: the exits, and 0 for the n-gram drafter."""
        return self.exits if self.ngram is None else (0, *self.exits)

    @property
    def draft_gammas(self) -> dict[int, float]:
        """The gamma of each boundary that drafts may come from."""
        of_exits = dict(zip(self.exits, self.gammas, strict=True))
        return of_exits if self.ngram is None else {0: self.ngram, **of_exits}

    def for_method(self, method: Method) -> "Policy":
        """How `method` decodes in a run of this policy: what it does not draft with is left out, the width stays."""
        exits = self.exits if method.exits else ()
        gammas = self.gammas if method.gamma is None else (method.gamma,) * len(self.exits)
        return replace(
            self,
            exits=exits,
            gammas=gammas[: len(exits)],
            max_drafts=self.max_drafts if method.width is None else min(self.max_drafts, method.width - 1),
            ngram=self.ngram if method.ngrams else None,
            rows=self.rows if method.width is None else method.width,
            verified=method.verified,
        )


VANILLA = Policy()


def make_policy(settings: DecodeSettings, head_exits: tuple[int, ...] | None, num_layers: int) -> Policy:
    """The policy of `settings` for a model of L layers with heads at `head_exits`; raises UsageError for one it lacks.

    Without exits of its own it takes the paper's where there are heads for all of them, else all that have heads; where
    no heads were loaded, `head_exits` None, it has no exits.
    """
    if head_exits is None:
        return Policy((), (), settings.max_drafts, settings.reject, settings.ngram, settings.stop, settings.ngram_store)
    papers = paper_exits(num_layers)
    exits = papers if papers and set(papers) <= set(head_exits) else head_exits
    if settings.exits is not None:
        exits = settings.exits
    check_heads_at(exits, head_exits)
    gammas = settings.gamma if isinstance(settings.gamma, tuple) else (settings.gamma,) * len(exits)
    if not exits and settings.ngram is None:
        raise UsageError("exits []: nothing drafts without exits and n-grams; give --ngram, such as 0.3, or --exits")
    if len(gammas) != len(exits):
        raise UsageError(
            f"--gamma {','.join(map(str, gammas))}: {len(gammas)} thresholds for the {len(exits)} exits "
            f"{','.join(map(str, exits))}; give one for all or one for each"
        )
    rest = (settings.max_drafts, settings.reject, settings.ngram, settings.stop, settings.ngram_store)
    return Policy(exits, gammas, *rest)


def check_heads_at(exits: tuple[int, ...], head_exits: tuple[int, ...], whose: str = "the heads") -> None:
    """Raises UsageError unless there are heads at all of `exits`; `whose` heads are at `head_exits`."""
    missing = sorted(set(exits) - set(head_exits))
    if missing:
        raise UsageError(
            f"--exits {','.join(map(str, exits))}: there are no heads at {missing}; "
            f"{whose} are at {','.join(map(str, head_exits))}: choose among them or train others"
        )


def paper_exits(num_layers: int) -> tuple[int, ...]:
    """Exit layers at L/4, L/2 and 3L/4 (paper section 4), without duplicates on very shallow models."""
    return tuple(sorted({max(1, num_layers * quarter // 4) for quarter in (1, 2, 3)} & set(range(1, num_layers))))
