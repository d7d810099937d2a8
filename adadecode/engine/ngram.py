"""The n-gram drafter: what followed the newest tokens when they last stood in this prompt or output.

Prompt lookup, as in transformers and vLLM: it runs no layers, so its drafts are parked at boundary 0. Unlike those it
takes the longest match of any length (`Suffixes`), and gives each proposal a confidence, as an exit head does: how likely
the token is to be right, judged by how long the match is and how often it went on like that (`confidence_of`).
"""

import math

from adadecode.engine.round import Round
from adadecode.engine.suffixes import Continuation, Suffixes
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest

# Past these a match is as sure as at them.
MOST_LENGTH, MOST_STREAK = 32, 16


class NgramDrafter:
    """A drafter at boundary 0: one sequence's n-grams by how they went on."""

    boundary = 0
    tests: tuple[ExitTest, ...] = ()

    def __init__(self, gamma: float) -> None:
        """Drafts are proposed while all of them are right with a probability above `gamma`."""
        self.gamma = gamma
        self._suffixes = Suffixes()

    def extend(self, token_ids: list[int]) -> None:
        """Adds verified tokens to the sequence."""
        for token_id in token_ids:
            self._suffixes.append(token_id)

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        """What may follow the round's drafts, as many as it has room for."""
        return self.chain(round_.token_ids[1:], round_.room)

    def chain(self, drafts: list[int], max_tokens: int) -> Proposals:
        """At most `max_tokens` tokens to follow the sequence and the pending `drafts`, each by its longest match.

        Beside each the probability that it and all before it in the chain are right.
        """
        suffixes = self._suffixes
        context = suffixes.newest
        for token_id in drafts:
            context = suffixes.after(context, token_id)
        chain: Proposals = []
        confidence = 1.0
        while len(chain) < max_tokens and (found := suffixes.continuation(context)) is not None:
            length, seen = found
            confidence *= confidence_in(length, seen)
            if confidence <= self.gamma:
                break
            chain.append((seen.token_id, confidence))
            context = suffixes.after(context, seen.token_id)
        return chain

    def successor(self) -> tuple[int, float] | None:
        """What follows the sequence by its longest match, and how likely; None without a match."""
        found = self._suffixes.continuation(self._suffixes.newest)
        return None if found is None else (found[1].token_id, confidence_in(*found))


def confidence_in(length: int, seen: Continuation) -> float:
    """The probability that a context of `length` tokens goes on as it last did."""
    return CONFIDENCE[seen.has_changed][min(length, MOST_LENGTH)][min(seen.streak, MOST_STREAK)]


def confidence_of(length: int, streak: int, has_changed: bool) -> float:
    """The probability that the longest match, of `length` tokens, goes on as it did the last `streak` times.

    A logistic regression over the greedy outputs of two models, the demo's and SmolLM2-135M-Instruct, on prompts of GSM8K's
    training split and of HumanEval (`tests/efficiency/fit_ngrams.py`).
    """
    odds = math.exp(-0.56) * length**1.10 * streak**1.44 * (math.exp(-1.29) if has_changed else 1.0)
    return odds / (1.0 + odds)


CONFIDENCE = [
    [
        [confidence_of(length, streak, has_changed) if length and streak else 0.0 for streak in range(MOST_STREAK + 1)]
        for length in range(MOST_LENGTH + 1)
    ]
    for has_changed in (False, True)
]
