"""The engine itself on traced prompts: timed to fit costs and to compare policies, recorded beside its replay."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adadecode.bench.calls import RecordingModel, RecordingStep
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate, room_for_output
from adadecode.engine.policy import VANILLA, Policy
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Generation
from adadecode.tuning.call_costs import CallCosts
from adadecode.tuning.contenders import Contender, gated_heads
from adadecode.tuning.costs import Costs, MeasuredGeneration, fit_costs
from adadecode.tuning.replay import Candidate, ModelFacts, ReplayStep, TracedHeads, generate_over, replay
from adadecode.tuning.result import TuneRow
from adadecode.tuning.search import GAMMAS, GATES, NGRAMS, REJECTS
from adadecode.tuning.trace import SampleTrace, TraceSpace

COST_PROMPTS, COST_CANDIDATES, COST_REPEATS = 8, 12, 2
CALLS_BUDGET_S = 6.0


def decode_traced(model: Any, contender: Contender, trace: SampleTrace, space: TraceSpace) -> Generation:
    """The generation of `contender` on the prompt of `trace`."""
    request = Request(trace.prompt_ids, space.max_new_tokens)
    policy = replace(contender.policy, rows=contender.width)
    return generate(model, request, policy, drafters_of(policy, contender.heads.get(trace.task))).generation


def measure_costs(
    model: DecoderModel, heads: dict[str, ExitHeads], traces: Sequence[SampleTrace], space: TraceSpace, seed: int
) -> Costs:
    """What calls cost: timed one by one, then scaled to real generations of a few prompts under policies of all kinds.

    Everything is done in turns, so that a machine that is slower for a while is so for all.
    """
    rng = random.Random(seed)
    chosen = rng.sample(list(traces), min(COST_PROMPTS, len(traces)))
    has_gates = all(of_task.gates for of_task in heads.values())
    candidates = [Candidate(VANILLA), *(random_candidate(space, has_gates, rng) for _ in range(COST_CANDIDATES))]
    contenders = [
        Contender(str(idx), c.policy, space.width, gated_heads(heads, c.gate), c) for idx, c in enumerate(candidates)
    ]
    longest = max(chosen, key=lambda trace: len(trace.prompt_ids))
    prompt_ids = list(longest.prompt_ids)
    num_positions = len(prompt_ids) + min(space.max_new_tokens, room_for_output(model, len(prompt_ids)))
    calls = CallCosts(model, heads[longest.task], space, prompt_ids, num_positions)
    facts = ModelFacts.of(model, heads)
    for contender in contenders:
        decode_traced(model, contender, chosen[0], space)  # the first may compile or pack weights
    least_s: dict[tuple[int, int], float] = {}
    for _ in range(COST_REPEATS):
        calls.measure(CALLS_BUDGET_S / COST_REPEATS)
        for prompt_idx, trace in enumerate(chosen):
            for idx in rng.sample(range(len(contenders)), len(contenders)):
                decode_s = decode_traced(model, contenders[idx], trace, space).decode_s
                key = (prompt_idx, idx)
                least_s[key] = min(decode_s, least_s.get(key, decode_s))
    measured = [
        MeasuredGeneration(replay(chosen[prompt_idx], space, facts, candidates[idx]).calls.vector(), decode_s)
        for (prompt_idx, idx), decode_s in least_s.items()
    ]
    return fit_costs(calls.seconds(), measured)


def random_candidate(space: TraceSpace, gates: bool, rng: random.Random) -> Candidate:
    """Any candidate in `space`."""
    exits = tuple(sorted(rng.sample(space.exits, rng.randint(1, min(3, len(space.exits))))))
    gammas = tuple(rng.choice([g for g in GAMMAS if g >= space.gamma_floor]) for _ in exits)
    ngram = rng.choice([g for g in NGRAMS if g is None or g >= space.ngram_floor])
    policy = Policy(exits, gammas, rng.randint(1, space.max_drafts), rng.choice(REJECTS), ngram)
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
    replayed = RecordingStep(ReplayStep(trace, space, facts))
    drafters = drafters_of(contender.policy, TracedHeads(contender.candidate, facts.stores.get(trace.task)))
    try:
        generate_over(replayed, trace, space, facts, contender.policy, drafters)
    except KeyError:  # a node the trace does not hold
        return False
    assert recording.step is not None
    return recording.step.log == replayed.log
