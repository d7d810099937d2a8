"""The engine itself on traced prompts: timed to fit costs and to compare policies, recorded beside its replay."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adadecode.bench.calls import RecordingModel, RecordingStep
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.kernels.sampling import Draw
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Generation
from adadecode.tuning.call_costs import CallCosts
from adadecode.tuning.contenders import Contender, gated_heads
from adadecode.tuning.costs import Costs, MeasuredPair, break_even, fit_costs
from adadecode.tuning.replay import Candidate, ModelFacts, ReplayStep, TracedHeads, generate_over
from adadecode.tuning.result import TuneRow
from adadecode.tuning.search import GAMMAS, GATES, NGRAMS, REJECTS, STOPS, VANILLA_CANDIDATE, Simulator
from adadecode.tuning.trace import Floors, SampleTrace, TraceSpace

COST_PROMPTS, COST_CANDIDATES, COST_REPEATS = 8, 12, 2
CALLS_BUDGET_S, FLOORS_BUDGET_S = 6.0, 2.0
FLOOR_SHARE, LEAST_FLOOR, LEAST_NGRAM_FLOOR = 0.75, 0.15, 0.2


def decode_traced(model: Any, contender: Contender, trace: SampleTrace, space: TraceSpace) -> Generation:
    """The generation of `contender` on the prompt of `trace`."""
    request = Request(trace.prompt_ids, space.max_new_tokens, draw=trace.draw)
    policy = replace(contender.policy, rows=contender.width)
    return generate(model, request, policy, drafters_of(policy, contender.heads.get(trace.task), trace.draw)).generation


class CostStudy:
    """What calls cost on this machine: timed one by one, then scaled to real generations of a few of the `traces`.

    Everything is done in turns, so that a machine that is slower for a while is so for all.
    """

    def __init__(
        self,
        model: DecoderModel,
        heads: dict[str, ExitHeads],
        traces: Sequence[SampleTrace],
        space: TraceSpace,
        seed: int,
    ) -> None:
        self._model, self._heads, self._space = model, heads, space
        self._rng = random.Random(seed)
        self._chosen = self._rng.sample(list(traces), min(COST_PROMPTS, len(traces)))
        prompts = [list(trace.prompt_ids) for trace in self._chosen]
        self._call_costs = CallCosts(model, heads[self._chosen[0].task], space, prompts, self._chosen[0].draw)
        self._simulator = Simulator(self._chosen, space, ModelFacts.of(model, heads))
        self._measured: list[MeasuredPair] = []

    def measure_random(self) -> None:
        """Measures policies of all kinds."""
        has_gates = all(of_task.gates for of_task in self._heads.values())
        self.measure([random_candidate(self._space, has_gates, self._rng) for _ in range(COST_CANDIDATES)])

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Measures `candidates`, and vanilla beside them."""
        contenders = {candidate: self._contender(candidate) for candidate in (VANILLA_CANDIDATE, *candidates)}
        for candidate, contender in contenders.items():
            self._simulator.calls(candidate)
            decode_traced(self._model, contender, self._chosen[0], self._space)  # the first may compile or pack weights
        for _ in range(COST_REPEATS):
            self._call_costs.measure(CALLS_BUDGET_S / COST_REPEATS)
            for idx, trace in enumerate(self._simulator.traces):
                found = {
                    one: (self._simulator.calls(one)[idx], decode_traced(self._model, by, trace, self._space).decode_s)
                    for one, by in self._rng.sample(list(contenders.items()), len(contenders))
                }
                vanilla = found.pop(VANILLA_CANDIDATE)
                self._measured += [MeasuredPair(*pair, *vanilla) for pair in found.values()]

    def costs(self) -> Costs:
        """The costs that agree best with all that was measured."""
        return fit_costs(self._call_costs.seconds(), self._measured)

    def _contender(self, candidate: Candidate) -> Contender:
        heads = gated_heads(self._heads, candidate.gate)
        return Contender(str(candidate), candidate.policy, self._space.width, heads, candidate)


def measure_floors(
    model: DecoderModel, heads: ExitHeads, space: TraceSpace, prompt_ids: list[int], draw: Draw | None = None
) -> Floors:
    """The least chances at which a draft can pay here, and a part of them: confidences are not quite chances."""
    calls = CallCosts(model, heads, space, [prompt_ids], draw)
    calls.measure(FLOORS_BUDGET_S)
    seconds, num_layers = calls.seconds(), model.num_layers

    def chance(boundary: int) -> float:
        return break_even(seconds, num_layers, boundary, space.max_drafts, calls.num_columns)

    def floor(boundary: int, least: float) -> float:
        return max(least, round(FLOOR_SHARE * chance(boundary), 2))

    return Floors(tuple(floor(e, LEAST_FLOOR) for e in space.exits), floor(0, LEAST_NGRAM_FLOOR))


def random_candidate(space: TraceSpace, gates: bool, rng: random.Random) -> Candidate:
    """Any candidate in `space`."""
    while True:
        exits = tuple(sorted(rng.sample(space.exits, rng.randint(1, min(3, len(space.exits))))))
        gammas = tuple(rng.choice([g for g in GAMMAS if g >= space.floor_at(e)]) for e in exits)
        ngram = rng.choice([g for g in NGRAMS if g is None or g >= space.floors.ngram])
        policy = Policy(exits, gammas, rng.randint(1, space.max_drafts), rng.choice(REJECTS), ngram, rng.choice(STOPS))
        if space.covers(policy):
            return Candidate(policy, rng.choice(GATES) if gates else 0.0)


def measure_contenders(
    model: DecoderModel, contenders: Sequence[Contender], traces: Sequence[SampleTrace], space: TraceSpace, repeats: int
) -> list[TuneRow]:
    """One row per prompt, contender and repeat, the contenders in a random order; the first repeat is not counted."""
    rng = random.Random(repeats)
    rows = []
    for repeat in range(-1, repeats):
        for trace in traces:
            for order_idx, contender in enumerate(rng.sample(contenders, len(contenders))):
                generation = decode_traced(model, contender, trace, space)
                if repeat >= 0:
                    rows.append(
                        TuneRow(
                            task=trace.task,
                            sample_id=trace.sample_id,
                            variant=contender.name,
                            repeat=repeat,
                            order_idx=order_idx,
                            prompt_len=len(trace.prompt_ids),
                            output_len=len(generation.output_token_ids),
                            ttft_s=generation.ttft_s,
                            decode_s=generation.decode_s,
                            num_rounds=generation.num_rounds,
                            layers_run=generation.layers_run,
                            num_drafted=generation.num_drafted,
                            num_accepted=generation.num_accepted,
                            is_exact=generation.output_token_ids == trace.output_ids,
                        )
                    )
    return rows


def replays_alike(model: DecoderModel, contender: Contender, trace: SampleTrace, space: TraceSpace) -> bool:
    """Whether the engine and its replay make the same calls on the prompt of `trace`, with the same answers.

    Calls are drafts put into slots, segments passed, tests with every proposal and confidence, verifications, and where
    each round begins, which is what was accepted.
    """
    assert contender.candidate is not None, contender.name
    recording = RecordingModel(model)
    decode_traced(recording, contender, trace, space)
    facts = ModelFacts.of(model, contender.heads)
    replayed = RecordingStep(ReplayStep(trace, space))
    drafters = drafters_of(contender.policy, TracedHeads(contender.candidate, facts.stores.get(trace.task)), trace.draw)
    try:
        generate_over(replayed, trace, space, facts, contender.policy, drafters)
    except KeyError:  # a node the trace does not hold
        return False
    assert recording.step is not None
    return recording.step.log == replayed.log
