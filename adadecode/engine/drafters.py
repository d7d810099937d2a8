"""Who proposes drafts: a drafter at each boundary between layers, boundary 0 before the first of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adadecode.engine.ngram import NgramDrafter
from adadecode.engine.policy import Policy
from adadecode.engine.round import Round
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest
from adadecode.model.ngram_store import NgramStore


class Drafter(Protocol):
    """Proposes next tokens for one generation where a slot has run `boundary` layers; at boundary 0 it runs none.

    A round asks its drafters in turn, the lowest boundary first, and begins anew with each draft of an exit.
    """

    @property
    def boundary(self) -> int: ...

    @property
    def gamma(self) -> float:
        """The confidence, in [0, 1], that a proposal must exceed to be drafted."""
        ...

    @property
    def tests(self) -> Sequence[ExitTest]:
        """What `propose` may test, for the decode step to prepare."""
        ...

    def extend(self, token_ids: list[int]) -> None:
        """Learns of tokens that are certain: first the prompt's, then the output's as they come."""
        ...

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals | None:
        """Runs `segment`, which ends at the boundary; then proposes a token after each of slots [first_tested, hi).

        The last of these slots is the round's current one. Proposals beyond it are a chain that goes on from there, each
        as sure as all before it together, `round_.room` of them at most. None, or none, where there is nothing to propose.
        """
        ...


@runtime_checkable
class SeesStates(Protocol):
    """What a drafter is as well that reads states of the last layer, which the next round overwrites."""

    def see(self, step: DecodeStep, slot: int) -> None:
        """Sees `slot`, which has passed all layers: the newest certain token was predicted from it."""
        ...


@dataclass(frozen=True)
class HeadDrafter:
    """The exit head at layer `boundary`: the likeliest next token of a slot, or the one drawn, and its probability.

    Proposes nothing where a slot alone is not worth a test, says the gate of `test`.
    """

    boundary: int
    gamma: float
    test: ExitTest

    @property
    def tests(self) -> Sequence[ExitTest]:
        return (self.test,)

    def extend(self, token_ids: list[int]) -> None:
        """Does nothing: a head sees hidden states, not tokens."""

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals | None:
        return step.run_to_exit(segment, self.test, first_tested)


class Heads(Protocol):
    """Exit heads by layer: `ExitHeads`, or what stands in for them."""

    @property
    def exits(self) -> tuple[int, ...]: ...

    @property
    def tests(self) -> Collection[ExitTest]:
        """One for each of `exits`."""
        ...

    @property
    def store(self) -> NgramStore | None:
        """The n-grams of the model's training outputs, where there are some beside the heads."""
        ...


def drafters_of(policy: Policy, heads: Heads | None, draw: Draw | None = None) -> tuple[Drafter, ...]:
    """The drafters of `policy` for one generation, the lowest boundary first; `heads` has one at each of its exits.

    `draw` is the generation's own: exit heads draw by it where the decode step does.
    """
    assert heads is not None or not policy.exits, policy
    store = heads.store if heads is not None and policy.ngram_store else None
    of_ngrams = () if policy.ngram is None else (NgramDrafter(policy.ngram, store, draw),)
    tests = {} if heads is None else dict(zip(heads.exits, heads.tests, strict=True))
    if not policy.gated:
        tests = {e: test if test.gate is None else ExitTest(test.head) for e, test in tests.items()}
    of_heads = (HeadDrafter(e, gamma, tests[e]) for e, gamma in zip(policy.exits, policy.gammas, strict=True))
    return (*of_ngrams, *of_heads)
