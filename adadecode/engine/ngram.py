"""The n-gram drafter: what followed the newest tokens when they last stood in this prompt or output, or mostly does.

Prompt lookup, as in transformers and vLLM: it runs no layers, so its drafts are parked at boundary 0. Unlike those it
takes the longest match of any length (`Suffixes`), and gives each proposal a confidence, as an exit head does: how likely
the token is to be right, judged by how long the match is and how often it went on like that (`confidence_of`). Beside the
text it asks the store of the model's training outputs, where the heads have one, and takes what is `likelier`.

Where tokens are drawn it has no distribution to draw from. It proposes the same token, and knows the noise which that token
will meet: its confidence is the chance that the token wins there (`chance_to_win`).
"""

import math

from adadecode.engine.round import Round
from adadecode.engine.sampling import noise_of
from adadecode.engine.suffixes import Context, Continuation, Suffixes
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest
from adadecode.model.ngram_store import NgramStore

# Past these a match is as sure as at them.
MOST_LENGTH, MOST_STREAK = 32, 16
SURE = 1e-3  # a chance nearer to 0 or 1 counts as this near

# Weights of `probability` where sequence and store say the same token, and of either's token where they do not.
AGREED = (1.52, 0.73, 0.78)
REPEATED_AGAINST = (-0.80, 0.92, -0.35)
STORED_AGAINST = (-0.87, -0.56, 0.90)


class NgramDrafter:
    """A drafter at boundary 0: one sequence's n-grams by how they went on, and a store's by how they mostly do."""

    boundary = 0
    tests: tuple[ExitTest, ...] = ()

    def __init__(self, gamma: float, store: NgramStore | None = None, draw: Draw | None = None) -> None:
        """Drafts are proposed while all of them are right with a probability above `gamma`, where `draw` draws."""
        self.gamma = gamma
        self._suffixes = Suffixes()
        self._store, self._draw = store, draw
        self._num_certain = 0
        self._end: list[int] = []  # of the sequence, as much as the store can know

    def extend(self, token_ids: list[int]) -> None:
        """Adds verified tokens to the sequence."""
        self._num_certain += len(token_ids)
        for token_id in token_ids:
            self._suffixes.append(token_id)
        if self._store is not None:
            self._end = [*self._end, *token_ids][-self._store.longest :]

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        """What may follow the round's drafts, as many as it has room for."""
        return self.chain(round_.token_ids[1:], round_.room)

    def chain(self, drafts: list[int], max_tokens: int) -> Proposals:
        """At most `max_tokens` tokens to follow the sequence and the pending `drafts`, each the likeliest after those.

        Beside each the probability that it and all before it in the chain are right.
        """
        suffixes = self._suffixes
        context, end = suffixes.newest, [*self._end, *drafts]
        for token_id in drafts:
            context = suffixes.after(context, token_id)
        chain: Proposals = []
        confidence = 1.0
        first = self._num_certain + len(drafts)
        while len(chain) < max_tokens and (found := self._successor(context, end, first + len(chain))) is not None:
            confidence *= found[1]
            if confidence <= self.gamma:
                break
            chain.append((found[0], confidence))
            context = suffixes.after(context, found[0])
            end.append(found[0])
        return chain

    def successor(self) -> tuple[int, float] | None:
        """What follows the sequence, and how likely; None where neither the sequence nor the store knows its end."""
        return self._successor(self._suffixes.newest, self._end, self._num_certain)

    def _successor(self, context: Context, end: list[int], position: int) -> tuple[int, float] | None:
        """What follows `context`, whose newest tokens `end` has, at `position`, and how likely."""
        found = self._suffixes.continuation(context)
        repeated = None if found is None else (found[1].token_id, confidence_in(*found))
        stored = None if self._store is None else self._store.successor(end)
        said = likelier(repeated, stored)
        if said is None or self._draw is None:
            return said
        place = position - self._draw.first_position
        return said[0], chance_to_win(said[1], noise_of(self._draw.key, place, said[0]))


def chance_to_win(chance: float, noise: float) -> float:
    """The probability that a token of probability `chance` is drawn at a place where its Gumbel noise is `noise`.

    It scores ln(chance) + noise; the best score of all others is Gumbel distributed about ln(1 - chance), so that it stays
    below with probability exp(-((1 - chance) / chance) exp(-noise)). Averaged over the noise that is `chance` again.
    """
    chance = min(max(chance, SURE), 1.0 - SURE)
    return math.exp(-(1.0 - chance) / chance * math.exp(-noise))


def likelier(repeated: tuple[int, float] | None, stored: tuple[int, float] | None) -> tuple[int, float] | None:
    """The likelier of what the sequence repeats and what the store says, with its probability given both.

    Logistic regressions over the greedy outputs that `confidence_of` is fitted to, by the log-odds of the two alone.
    """
    if repeated is None or stored is None:
        return repeated or stored
    odds = log_odds(repeated[1]), log_odds(stored[1])
    if repeated[0] == stored[0]:
        return repeated[0], probability(AGREED, *odds)
    of_repeated, of_stored = probability(REPEATED_AGAINST, *odds), probability(STORED_AGAINST, *odds)
    return (repeated[0], of_repeated) if of_repeated >= of_stored else (stored[0], of_stored)


def log_odds(chance: float) -> float:
    """ln(p / (1 - p)) of `chance`, of what is neither impossible nor certain."""
    chance = min(max(chance, SURE), 1.0 - SURE)
    return math.log(chance / (1.0 - chance))


def probability(weights: tuple[float, float, float], repeated: float, stored: float) -> float:
    """The probability of a token given the log-odds of what is `repeated` and `stored`, by their weights and a constant."""
    return 1.0 / (1.0 + math.exp(-(weights[0] + weights[1] * repeated + weights[2] * stored)))


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
