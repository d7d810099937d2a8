"""Which exits are tested, how sure they must be, and how wide a decode step is."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from adadecode.errors import UsageError
from adadecode.methods import Method
from adadecode.settings import DecodeSettings, Stop

# With 5, 6 or 7 rows a float32 GEMM on two CPU threads gives a row other bits in other slots, and an odd number of rows
# leaves vector tails; multiples of 8 were free of both for every dtype and thread count tried (docs/parity.md).
WIDTH_MULTIPLE = 8


def step_width(max_drafts: int) -> int:
    """W, the rows of every decode step: the current token and its drafts, rounded up to a multiple of 8."""
    return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


class OneExit(NamedTuple):
    """A fixed number of drafts of one exit layer; None where a model has none."""

    exit_layer: int | None = None
    num_drafts: int = 0


NO_EXIT = OneExit()


@dataclass(frozen=True)
class Policy:
    """How rounds go: what is drafted when, in steps of how many rows. No exits and no n-grams is vanilla decoding.

    `exits` are tested with a gamma each; at most `max_drafts` drafts are pending; `reject` is the confidence with which
    a deeper head rejects a draft early, None for never; `ngram` the gamma of the n-gram drafter, None for none, which
    consults the store beside the heads with `ngram_store`. `stop` says what must exceed a gamma: how sure the `token` is,
    or the `chain` of all pending drafts with it. `rows` stand in a decode step, None for as many as `max_drafts` needs.
    Drafts that are not `verified` are kept as they are. `gated` tests are skipped where their gate says so. `layerskip` is
    where and how much a method drafts that does so at one exit. `draft_model` says that a draft model drafts at boundary 0,
    while the chance that all of its chain hold exceeds `draft_gamma`; `medusa` that Medusa heads do, up to `medusa_gamma`.
    Layers `skipped`, counted from 1, are left out after the prompt.
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
    gated: bool = True
    layerskip: OneExit = NO_EXIT
    draft_model: bool = False
    draft_gamma: float = 0.0
    medusa: bool = False
    medusa_gamma: float = 0.0
    skipped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.exits) == len(self.gammas), (self.exits, self.gammas)
        assert list(self.exits) == sorted(set(self.exits)), self.exits
        assert self.max_drafts < self.width, self

    @property
    def width(self) -> int:
        """W, the rows of every decode step."""
        return self.rows or step_width(max(self.max_drafts, self.layerskip.num_drafts))

    @property
    def draft_exits(self) -> tuple[int, ...]:
        """Where drafts may come from: the exits, and 0 for n-grams, a draft model and Medusa heads."""
        return (0, *self.exits) if self.ngram is not None or self.draft_model or self.medusa else self.exits

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """The ranges [start, stop) of layers, counted from 0, that are left out, each as long as it can be."""
        starts = [layer - 1 for layer in self.skipped if layer - 1 not in self.skipped]
        stops = [layer for layer in self.skipped if layer + 1 not in self.skipped]
        return tuple(zip(starts, stops, strict=True))

    @property
    def draft_gammas(self) -> dict[int, float]:
        """The gamma of each boundary that drafts may come from."""
        of_exits = dict(zip(self.exits, self.gammas, strict=True))
        return of_exits if self.ngram is None else {0: self.ngram, **of_exits}

    def for_method(self, method: Method) -> "Policy":
        """How `method` decodes in a run of this policy: what it does not draft with is left out, the width stays."""
        exits = self.exits if method.exits else ()
        gammas = self.gammas if method.gamma is None else (method.gamma,) * len(self.exits)
        ngram = method.ngram if self.ngram is None else self.ngram
        adapted = replace(
            self,
            exits=exits,
            gammas=gammas[: len(exits)],
            max_drafts=self.max_drafts if method.width is None else min(self.max_drafts, method.width - 1),
            ngram=ngram if method.ngrams else None,
            rows=method.width or self.width,
            verified=method.verified,
            draft_model=method.draft_model,
            medusa=method.medusa,
            skipped=self.skipped if method.skips_layers else (),
        )
        return adapted._at_one_exit() if method.one_exit else adapted

    def _at_one_exit(self) -> "Policy":
        """The exit of `layerskip` drafts whatever it proposes until so many drafts are pending, and nothing rejects one."""
        assert self.layerskip.exit_layer is not None, self
        return replace(
            self,
            exits=(self.layerskip.exit_layer,),
            gammas=(0.0,),
            max_drafts=self.layerskip.num_drafts,
            reject=None,
            stop="token",
            gated=False,
        )


VANILLA = Policy()


def make_policy(settings: DecodeSettings, head_exits: tuple[int, ...] | None, num_layers: int) -> Policy:
    """The policy of `settings` for a model of L layers with heads at `head_exits`; raises UsageError for one it lacks.

    Without exits of its own it takes the paper's where there are heads for all of them, else all that have heads; where
    no heads were loaded, `head_exits` None, because no method needs any, it has no exits.
    """
    rest = Policy(
        max_drafts=settings.max_drafts,
        reject=settings.reject,
        ngram=settings.ngram,
        stop=settings.stop,
        ngram_store=settings.ngram_store,
        layerskip=one_exit(settings, head_exits, num_layers),
        draft_gamma=settings.draft_gamma,
        medusa_gamma=settings.medusa_gamma,
        skipped=skipped_layers(settings, num_layers),
    )
    if head_exits is None and settings.exits != ():
        return rest
    head_exits = head_exits or ()
    papers = paper_exits(num_layers)
    exits = papers if papers and set(papers) <= set(head_exits) else head_exits
    if settings.exits is not None:
        exits = settings.exits
    check_heads_at(exits, head_exits)
    gammas = settings.gamma if isinstance(settings.gamma, tuple) else (settings.gamma,) * len(exits)
    if len(gammas) != len(exits):
        raise UsageError(
            f"--gamma {','.join(map(str, gammas))}: {len(gammas)} thresholds for the {len(exits)} exits "
            f"{','.join(map(str, exits))}; give one for all or one for each"
        )
    return replace(rest, exits=exits, gammas=gammas)


def one_exit(settings: DecodeSettings, head_exits: tuple[int, ...] | None, num_layers: int) -> OneExit:
    """Where a method drafts at one exit, and how much: as `settings` say, else the paper's first exit.

    Without a head there it is the first that has one. Raises UsageError for an exit that the model does not have.
    """
    exit_layer = settings.layerskip_exit
    if exit_layer is not None and exit_layer >= num_layers:
        raise UsageError(f"--layerskip-exit {exit_layer}: give one from 1 to {num_layers - 1}, the exits of this model")
    if exit_layer is None:
        papers = paper_exits(num_layers)[:1]
        found = papers if head_exits is None or set(papers) <= set(head_exits) else head_exits
        exit_layer = next(iter(found), None)
    return OneExit(exit_layer, settings.layerskip_drafts)


def skipped_layers(settings: DecodeSettings, num_layers: int) -> tuple[int, ...]:
    """The layers that are left out; raises UsageError where the model, of L layers, must have one of them."""
    skipped = settings.skip_layers or ()
    if skipped and skipped[-1] >= num_layers:
        raise UsageError(
            f"--skip-layers {','.join(map(str, skipped))}: give layers from 2 to {num_layers - 1}: the first and last stay"
        )
    return skipped


def check_heads_at(
    exits: tuple[int, ...], head_exits: tuple[int, ...], whose: str = "the heads", flag: str = "--exits"
) -> None:
    """Raises UsageError unless there are heads at all of `exits`, which `flag` gave; `whose` heads are at `head_exits`."""
    missing = sorted(set(exits) - set(head_exits))
    if missing:
        raise UsageError(
            f"{flag} {','.join(map(str, exits))}: there are no heads at {missing}; "
            f"{whose} are at {','.join(map(str, head_exits))}: choose among them or train others"
        )


def paper_exits(num_layers: int) -> tuple[int, ...]:
    """Exit layers at L/4, L/2 and 3L/4 (paper section 4), without duplicates on very shallow models."""
    return tuple(sorted({max(1, num_layers * quarter // 4) for quarter in (1, 2, 3)} & set(range(1, num_layers))))
