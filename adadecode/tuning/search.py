"""Searches policies by replay: from a few starts, one setting at a time, as long as it pays on the prompts."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adadecode.engine.policy import VANILLA, Policy
from adadecode.settings import Stop
from adadecode.tuning.costs import Calls, Costs
from adadecode.tuning.replay import Candidate, ModelFacts, replay, replay_oracle
from adadecode.tuning.trace import SampleTrace, TraceSpace

GAMMAS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95)
NEW_GAMMA = 0.6  # of an exit that is added
STOPS: tuple[Stop, ...] = ("token", "chain")
OTHER_STOP = {"token": (1.0, 1.2, 1.4), "chain": (1.0, 0.85, 0.7, 0.55)}  # factors of the gammas of the other rule
REJECTS = (None, 0.5, 0.6, 0.7, 0.8, 0.9)
NGRAMS = (None, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
MAX_PASSES = 5

Gains = Callable[[Candidate], NDArray[np.float64]]
VANILLA_CANDIDATE = Candidate(VANILLA)


class Simulator:
    """Replays candidates over traces of at least two output tokens each; what was replayed once is kept."""

    def __init__(self, traces: list[SampleTrace], space: TraceSpace, facts: ModelFacts) -> None:
        self.traces, self.space = [trace for trace in traces if len(trace.output_ids) > 1], space
        self._facts = facts
        self._calls: dict[Candidate, NDArray[np.float64]] = {}

    def calls(self, candidate: Candidate) -> NDArray[np.float64]:
        """The calls of every trace's decoding under `candidate`, [traces, 4 W + 4]."""
        if candidate not in self._calls:
            replayed = (replay(trace, self.space, self._facts, candidate) for trace in self.traces)
            self._calls[candidate] = _stacked(one.calls for one in replayed)
        return self._calls[candidate]

    def gains(self, candidate: Candidate, costs: Costs) -> NDArray[np.float64]:
        """Natural log of the predicted speedup over vanilla of every trace's decoding, [traces]."""
        return np.log(costs.decode_s(self.calls(VANILLA_CANDIDATE)) / costs.decode_s(self.calls(candidate)))

    def oracle_gains(self, costs: Costs, *, ngrams: bool) -> NDArray[np.float64]:
        """Natural log of the perfect policy's speedup, [traces], at the number of drafts that is best for it."""
        vanilla_s = costs.decode_s(self.calls(VANILLA_CANDIDATE))
        found = []
        for max_drafts in range(1, self.space.max_drafts + 1):
            perfect = (replay_oracle(t, self.space, self._facts, max_drafts, ngrams=ngrams) for t in self.traces)
            found.append(np.log(vanilla_s / costs.decode_s(_stacked(perfect))))
        return max(found, key=np.mean)


def _stacked(calls: Iterator[Calls]) -> NDArray[np.float64]:
    return np.array([one.vector() for one in calls])


@dataclass(frozen=True)
class Search:
    """Looks for the candidate in `space` with the most `gains`, from `starts` on, with gates where the heads have them."""

    gains: Gains
    starts: list[Candidate]
    space: TraceSpace
    has_gates: bool

    def best(self, prompts: NDArray[np.intp]) -> Candidate:
        """The best candidate found by mean gain on `prompts`, which index what `gains` gives."""
        return max(self.finalists(prompts), key=lambda candidate: self.gains(candidate)[prompts].mean())

    def finalists(self, prompts: NDArray[np.intp]) -> list[Candidate]:
        """The best candidate on `prompts` from each of the starts, those that are the same once."""
        return list(dict.fromkeys(self._climb(start, prompts) for start in self.starts))

    def cross_validated(self, num_prompts: int, num_folds: int, seed: int) -> NDArray[np.float64]:
        """Per prompt the gain of the candidate that was found on the other folds, [prompts]."""
        order = np.random.default_rng(seed).permutation(num_prompts)
        found = np.empty(num_prompts)
        for fold in np.array_split(order, num_folds):
            others = np.setdiff1d(order, fold)
            found[fold] = self.gains(self.best(others))[fold]
        return found

    def _climb(self, start: Candidate, prompts: NDArray[np.intp]) -> Candidate:
        """From `start`, changes one setting after the other to its best value until none pays."""
        best = start
        for _ in range(MAX_PASSES):
            before = best
            for axis in _axes(self.space, self.has_gates):
                options = [option for option in axis(best) if self.space.covers(option.policy)]
                top = max(options, key=lambda candidate: self.gains(candidate)[prompts].mean(), default=best)
                if pays(self.gains(top)[prompts] - self.gains(best)[prompts]):
                    best = top
            if best == before:
                break
        return best


def pays(differences: NDArray[np.float64]) -> bool:
    """Whether the mean of paired `differences` exceeds its own standard error, so that no noise is followed."""
    error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return bool(differences.mean() > error)


def _axes(space: TraceSpace, gates: bool) -> Iterator[Callable[[Candidate], list[Candidate]]]:
    """The settings that can be changed, each as the candidates it leads to from one; some may not lie in `space`."""
    yield lambda now: [_with_exit_toggled(now, e, space) for e in space.exits if _may_toggle(now, e)]
    yield lambda now: [_with_gammas(now, [g] * len(now.policy.exits), space) for g in GAMMAS]
    for exit_layer in space.exits:
        yield lambda now, e=exit_layer: [_with_gamma(now, e, g) for g in GAMMAS]
    yield lambda now: [_with(now, max_drafts=n) for n in range(1, space.max_drafts + 1)]
    yield lambda now: [_with_stop(now, stop, factor, space) for stop in STOPS for factor in OTHER_STOP[stop]]
    yield lambda now: [_with(now, ngram=g) for g in NGRAMS if now.policy.exits or g is not None]
    yield lambda now: [_with(now, reject=r) for r in REJECTS if now.policy.exits]
    if gates:
        yield lambda now: [now._replace(gate=gate) for gate in GATES if now.policy.exits]


def _with(candidate: Candidate, **settings: object) -> Candidate:
    return candidate._replace(policy=replace(candidate.policy, **settings))


def _with_gammas(candidate: Candidate, gammas: Iterable[float], space: TraceSpace) -> Candidate:
    """With `gammas`, or the floors of `space` where they are higher."""
    exits = candidate.policy.exits
    return _with(candidate, gammas=tuple(max(g, space.floor_at(e)) for e, g in zip(exits, gammas, strict=True)))


def _with_stop(candidate: Candidate, stop: Stop, factor: float, space: TraceSpace) -> Candidate:
    """With the other rule, all gammas multiplied by `factor`: under it the same gamma is another bar."""
    if candidate.policy.stop == stop:
        return candidate
    gammas = (min(0.95, round(factor * gamma, 3)) for gamma in candidate.policy.gammas)
    return _with_gammas(_with(candidate, stop=stop), gammas, space)


def _may_toggle(candidate: Candidate, exit_layer: int) -> bool:
    """Whether anything drafts in `candidate` with `exit_layer` taken out, or put in."""
    return candidate.policy.exits != (exit_layer,) or candidate.policy.ngram is not None


def _with_exit_toggled(candidate: Candidate, exit_layer: int, space: TraceSpace) -> Candidate:
    gammas = dict(zip(candidate.policy.exits, candidate.policy.gammas, strict=True))
    if gammas.pop(exit_layer, None) is None:
        gammas[exit_layer] = max(NEW_GAMMA, space.floor_at(exit_layer))
    exits = tuple(sorted(gammas))
    if not exits:  # nothing is tested, so nothing rejects or is skipped
        candidate = _with(candidate._replace(gate=0.0), reject=None)
    return _with(candidate, exits=exits, gammas=tuple(gammas[e] for e in exits))


def _with_gamma(candidate: Candidate, exit_layer: int, gamma: float) -> Candidate:
    exits, gammas = candidate.policy.exits, candidate.policy.gammas
    return _with(candidate, gammas=tuple(gamma if e == exit_layer else g for e, g in zip(exits, gammas, strict=True)))


def start_candidates(space: TraceSpace, paper: Policy | None) -> list[Candidate]:
    """Where a search begins: the paper's policy, or its gamma at all exits, one exit with n-grams, and n-grams alone.

    The first two by each rule of stopping.
    """
    early = space.exits[(len(space.exits) - 1) // 2]
    first = Policy(space.exits, (0.75,) * len(space.exits), space.max_drafts)
    if paper is not None and set(paper.exits) <= set(space.exits):
        first = paper
    second = Policy((early,), (NEW_GAMMA,), space.max_drafts, None, 0.5)
    by_each_rule = [replace(policy, stop=stop) for policy in (first, second) for stop in STOPS]
    return [
        _lying_in(space, policy)
        for policy in (*by_each_rule, Policy((), (), space.max_drafts, ngram=0.5, stop="chain"))
    ]


def _lying_in(space: TraceSpace, policy: Policy) -> Candidate:
    """`policy` with no gamma below a floor, and with fewer drafts where `space` does not cover it."""
    candidate = _with_gammas(Candidate(policy), policy.gammas, space)
    ngram = None if policy.ngram is None else max(policy.ngram, space.floors.ngram)
    fewer = (
        _with(candidate, ngram=ngram, max_drafts=n) for n in range(min(policy.max_drafts, space.max_drafts), 0, -1)
    )
    return next(one for one in fewer if space.covers(one.policy))
