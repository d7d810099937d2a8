"""The engine itself on traced prompts: timed to fit costs and to judge policies, logged to compare with its replay."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from adadecode.engine import decode as engine
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, room_for_output
from adadecode.engine.policy import VANILLA, Policy
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Generation
from adadecode.tuning.costs import PARTS_BUDGET_S, Costs, Measured, PartCosts, fit_costs
from adadecode.tuning.replay import Candidate, ModelFacts, ReplayStep, TracedHeads, generate_over, replay
from adadecode.tuning.search import GAMMAS, GATES, NGRAMS, REJECTS
from adadecode.tuning.trace import SampleTrace, TraceSpace

COST_PROMPTS, COST_CANDIDATES, COST_REPEATS = 8, 12, 2


@dataclass(frozen=True)
class Variant:
    """One way to decode the held-out prompts; `heads` per task, none for vanilla. `width` is W or 1."""

    name: str
    policy: Policy
    width: int
    heads: dict[str, ExitHeads] = field(default_factory=dict)
    candidate: Candidate | None = None  # what a replay of it takes; None when its heads are not the traced ones


def decode(model: Any, variant: Variant, trace: SampleTrace, space: TraceSpace) -> Generation:
    """One generation of the prompt of `trace`."""
    request = Request(trace.prompt_ids, space.max_new_tokens)
    policy = replace(variant.policy, rows=variant.width)  # which "adadecode" follows to the letter
    return engine.decode(model, METHODS["adadecode"], request, policy, variant.heads.get(trace.task)).generation


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
    variants = [
        Variant(str(idx), c.policy, space.width, {task: h.with_gate(c.gate) for task, h in heads.items()}, c)
        for idx, c in enumerate(candidates)
    ]
    longest = max(chosen, key=lambda trace: len(trace.prompt_ids))
    parts = PartCosts(
        model,
        heads[longest.task],
        space.exits,
        space.max_drafts,
        space.width,
        list(longest.prompt_ids),
        len(longest.prompt_ids) + min(space.max_new_tokens, room_for_output(model, len(longest.prompt_ids))),
    )
    facts = ModelFacts.of(model)
    for variant in variants:
        decode(model, variant, chosen[0], space)  # the first may compile or pack weights
    least_s: dict[tuple[int, int], float] = {}
    for _ in range(COST_REPEATS):
        parts.measure(PARTS_BUDGET_S / COST_REPEATS)
        for prompt_idx, trace in enumerate(chosen):
            for variant_idx in rng.sample(range(len(variants)), len(variants)):
                decode_s = decode(model, variants[variant_idx], trace, space).decode_s
                key = (prompt_idx, variant_idx)
                least_s[key] = min(decode_s, least_s.get(key, decode_s))
    measured = [
        Measured(replay(chosen[prompt_idx], space, facts, candidates[idx]).calls.vector(), decode_s)
        for (prompt_idx, idx), decode_s in least_s.items()
    ]
    return fit_costs(parts.seconds(), measured)


def random_candidate(space: TraceSpace, gates: bool, rng: random.Random) -> Candidate:
    """Any candidate in `space`."""
    exits = tuple(sorted(rng.sample(space.exits, rng.randint(1, min(3, len(space.exits))))))
    gammas = tuple(rng.choice([g for g in GAMMAS if g >= space.gamma_floor]) for _ in exits)
    ngram = rng.choice([g for g in NGRAMS if g is None or g >= space.ngram_floor])
    policy = Policy(exits, gammas, rng.randint(1, space.max_drafts), rng.choice(REJECTS), ngram)
    return Candidate(policy, rng.choice(GATES) if gates else 0.0)


def measure_variants(
    model: DecoderModel, variants: Sequence[Variant], traces: Sequence[SampleTrace], space: TraceSpace, repeats: int
) -> list[dict[str, Any]]:
    """One row per prompt, variant and repeat, all variants of a prompt in a random order; the first is not counted."""
    rng = random.Random(repeats)
    rows = []
    for repeat in range(-1, repeats):
        for trace in traces:
            for order_idx, variant in enumerate(rng.sample(variants, len(variants))):
                generation = decode(model, variant, trace, space)
                if repeat >= 0:
                    rows.append(
                        {
                            "task": trace.task,
                            "sample_id": trace.sample_id,
                            "variant": variant.name,
                            "repeat": repeat,
                            "order_idx": order_idx,
                            "prompt_len": len(trace.prompt_ids),
                            "output_len": len(generation.output_token_ids),
                            "ttft_s": generation.ttft_s,
                            "decode_s": generation.decode_s,
                            "num_rounds": generation.num_rounds,
                            "layers_run": generation.layers_run,
                            "num_drafted": generation.num_drafted,
                            "num_accepted": generation.num_accepted,
                            "is_exact": generation.output_token_ids == trace.output_ids,
                        }
                    )
    return rows


def replays_alike(model: DecoderModel, variant: Variant, trace: SampleTrace, space: TraceSpace) -> bool:
    """Whether the engine and its replay make the same calls on the prompt of `trace`, with the same answers.

    Calls are drafts put into slots, segments passed, tests with every proposal and confidence, verifications, and where
    each round begins, which is what was accepted.
    """
    assert variant.candidate is not None, variant.name
    logged = LoggedModel(model)
    decode(logged, variant, trace, space)
    facts = ModelFacts.of(model)
    replayed = LoggedStep(ReplayStep(trace, space, facts))
    drafters = drafters_of(variant.policy, TracedHeads(variant.policy.exits, variant.candidate.gate))
    try:
        generate_over(replayed, trace, space, facts, variant.policy, drafters)
    except KeyError:  # a node the trace does not hold
        return False
    assert logged.step is not None
    return logged.step.log == replayed.log


class LoggedStep:
    """A decode step that writes down the calls it passes on to `step`."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step
        self.width, self.cache, self.hidden, self.logits = step.width, step.cache, step.hidden, step.logits
        self.log: list[tuple] = []

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        self._step.prepare(boundaries, tests)

    def prefill(self, prompt_ids: list[int]) -> Tensor:
        return self._step.prefill(prompt_ids)

    def begin(self, first_position: int) -> None:
        self.log.append(("begin", first_position))
        self._step.begin(first_position)

    def put(self, slot: int, token_ids: list[int]) -> None:
        self.log.append(("put", slot, tuple(token_ids)))
        self._step.put(slot, token_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self.log.append(("run", lo, hi, start, stop))
        self._step.run(lo, hi, start, stop)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        proposals = self._step.run_to_exit(segment, test, first_tested)
        self.log.append(("exit", *segment, first_tested, proposals))
        return proposals

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        return self._step.test(head, lo, hi)

    def probe(self, gate: Gate, slot: int) -> float:
        return self._step.probe(gate, slot)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self.log.append(("verify", lo, hi))
        return self._step.verify(lo, hi)


class LoggedModel:
    """A model whose last new decode step is a logged one; everything else is `model`'s."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self.step: LoggedStep | None = None

    def new_step(self, width: int, num_positions: int) -> LoggedStep:
        self.step = LoggedStep(self._model.new_step(width, num_positions))
        return self.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
