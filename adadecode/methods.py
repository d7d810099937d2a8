"""The methods a run can measure, one row each: how it decodes, and what its output owes vanilla's.

A row is all that is known of a method: settings, engine, report and command line read it and name none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Owes = Literal["reference", "exact", "reported", "lossy"]


@dataclass(frozen=True)
class Method:
    """One way to decode.

    `owes`: its output *is* the reference, must be `exact`ly the reference's (another is exit code 3), is compared and
    `reported`, or is `lossy`: never a default, and differences are counted. `width` rows stand in a decode step, None for
    the run's W. `exits` says whether the policy's exits draft, at the policy's gammas or all at `gamma`; `ngrams` whether
    its n-gram drafter does, at the policy's threshold, or at `ngram` where that has none; `one_exit` whether the exit of
    `--layerskip-exit` alone does, however unsure, up to a fixed length; `draft_model` whether that of `--draft-model` does;
    `medusa` whether the heads in `--medusa-heads` do.
    `skips_layers` leaves out those of `--skip-layers`. `verified` drafts are compared with the last layer.
    `is_baseline` rows may be what speedups are quoted against. `by` names who decodes: our engine, or transformers' own
    `generate`.
    """

    name: str
    what: str
    owes: Owes
    width: int | None = None
    exits: bool = False
    ngrams: bool = False
    one_exit: bool = False
    draft_model: bool = False
    medusa: bool = False
    skips_layers: bool = False
    gamma: float | None = None
    ngram: float | None = None
    verified: bool = True
    is_baseline: bool = False
    by: Literal["engine", "transformers"] = "engine"

    @property
    def drafts(self) -> bool:
        """Whether anything can be drafted, so that there are drafts to count: at gamma 1 no exit fires."""
        return self.ngrams or self.one_exit or self.draft_model or self.medusa or (self.exits and self.gamma != 1.0)

    def needs_heads(self, exits: tuple[int, ...] | None) -> bool:
        """Whether exit heads draft for it under a policy of `exits`, None for all that have heads."""
        return self.by == "engine" and (self.one_exit or (self.exits and exits != ()))

    @property
    def may_read_heads(self) -> bool:
        """Whether heads, or n-grams that may lie beside them, draft for it."""
        return self.by == "engine" and (self.exits or self.one_exit or self.ngrams)

    @property
    def reads_settings(self) -> frozenset[str]:
        """The decode settings that it reads and methods of another kind do not."""
        where = {
            "layerskip_exit": self.one_exit,
            "draft_model": self.draft_model,
            "draft_revision": self.draft_model,
            "medusa_heads": self.medusa,
            "medusa_gamma": self.medusa,
            "skip_layers": self.skips_layers,
        }
        how_much = {"layerskip_drafts": self.one_exit, "draft_gamma": self.draft_model} if self.by == "engine" else {}
        return frozenset(name for name, is_read in (where | how_much).items() if is_read)

    def most_drafts(self, decode: Mapping[str, Any]) -> int | None:
        """The most drafts of a round under the decode settings `decode`; None where they do not tell."""
        if self.by != "engine":
            return None
        found = decode.get("layerskip_drafts" if self.one_exit else "max_drafts")
        return found if isinstance(found, int) else None

    def may_reject_early(self, decode: Mapping[str, Any]) -> bool:
        """Whether an exit may drop a draft before the last layer judges it, as far as the settings `decode` tell."""
        return self.exits and decode.get("reject", 0.0) is not None

    def is_compared(self, *, is_sampled: bool) -> bool:
        """Whether its tokens can be held against vanilla's: those transformers draws by its own noise cannot."""
        return self.owes != "reference" and not (is_sampled and self.by == "transformers")

    @property
    def is_lossy(self) -> bool:
        return self.owes == "lossy"

    def step_width(self, width: int) -> int | None:
        """Rows of its decode steps in a run of W = `width`; None where it has no steps of ours."""
        return None if self.by != "engine" else self.width or width


REFERENCE = "vanilla"
OURS = "adadecode"  # what a model generates by unless another is asked for
DEFAULT_METHODS = (REFERENCE, "vanilla-w1", OURS)

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(REFERENCE, "full decoding at width W", "reference", is_baseline=True),
        Method("vanilla-w1", "full decoding at width 1", "reported", width=1, is_baseline=True),
        Method(OURS, "early exits, verified", "exact", exits=True, ngrams=True),
        Method(
            "adadecode-unverified",
            "early exits, every draft kept: lossy, for the ablation only",
            "lossy",
            exits=True,
            ngrams=True,
            verified=False,
        ),
        Method("adadecode-never", "exits that never fire: what testing them costs", "exact", exits=True, gamma=1.0),
        Method(
            "layer-skipping",
            "the layers of --skip-layers left out after the prompt, nothing verified: lossy",
            "lossy",
            skips_layers=True,
            verified=False,
        ),
        Method("ngram", "n-grams alone, verified", "exact", ngrams=True, ngram=0.3),
        Method(
            "layerskip",
            "self-speculation: --layerskip-drafts drafts of the exit --layerskip-exit, verified together",
            "exact",
            one_exit=True,
        ),
        Method(
            "speculative", "drafts of the smaller model --draft-model, verified together", "exact", draft_model=True
        ),
        Method(
            "medusa",
            "the next tokens by heads on the last layer's state, those in --medusa-heads, verified together",
            "exact",
            medusa=True,
        ),
        Method("transformers", "transformers' own `generate`", "reported", by="transformers"),
        Method(
            "hf-prompt-lookup",
            "transformers' own with n-grams of the text",
            "reported",
            ngrams=True,
            ngram=0.0,
            by="transformers",
        ),
        Method(
            "hf-early-exit",
            "transformers' own with the model's LM head at --layerskip-exit",
            "reported",
            one_exit=True,
            by="transformers",
        ),
        Method("hf-assisted", "transformers' own with --draft-model", "reported", draft_model=True, by="transformers"),
    )
}
NEVER_FIRES = "adadecode-never"  # what testing exits costs: it tests them all and drafts at none

NameT = TypeVar("NameT", bound=str)


def names_that_owe(owes: Owes) -> tuple[str, ...]:
    """The names of the methods that owe vanilla's output `owes`, in the table's order."""
    return tuple(name for name, method in METHODS.items() if method.owes == owes)


def drawn_apart() -> tuple[str, ...]:
    """The names of the methods whose tokens cannot be held against vanilla's where tokens are drawn."""
    return tuple(
        name
        for name, method in METHODS.items()
        if method.is_compared(is_sampled=False) and not method.is_compared(is_sampled=True)
    )


def baselines() -> tuple[str, ...]:
    """The names of the methods that speedups may be quoted against, in the table's order."""
    return tuple(name for name, method in METHODS.items() if method.is_baseline)


def any_needs_heads(methods: tuple[str, ...], exits: tuple[int, ...] | None) -> bool:
    """Whether heads draft for any of `methods` under a policy of `exits`, None for all that have heads."""
    return any(METHODS[name].needs_heads(exits) for name in methods)


def any_reads_heads(methods: tuple[str, ...]) -> bool:
    """Whether any of `methods` drafts at exits, or by n-grams, which may lie beside heads."""
    return any(METHODS[name].may_read_heads for name in methods)


def in_turn(methods: tuple[NameT, ...], turn: int) -> tuple[NameT, ...]:
    """The order of n `methods` at the `turn`-th sample: over 2 n turns each stands twice in every place.

    The first method of a sample pays for what is new in it, such as the length of its prompt.
    """
    rotated = methods[turn % len(methods) :] + methods[: turn % len(methods)]
    return rotated if turn // len(methods) % 2 == 0 else rotated[::-1]
