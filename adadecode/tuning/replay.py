"""The engine over a trace: `generate` itself, with a decode step that looks up what a model would compute.

So a replay makes the drafts, tests and accepts of the engine by construction, and counts what each call would cost.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adadecode.engine.drafters import Drafter, drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.ngram import NgramDrafter
from adadecode.engine.policy import Policy
from adadecode.engine.round import Round
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Prefilled, Proposals, Segment, run_probe_test
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.ngram_store import NgramStore
from adadecode.records import Generation
from adadecode.tuning.costs import Calls
from adadecode.tuning.trace import Node, SampleTrace, TraceSpace

if TYPE_CHECKING:
    from adadecode.kernels.kv_cache import KVCache


class Candidate(NamedTuple):
    """A policy and the threshold of its gates, 0 for none."""

    policy: Policy
    gate: float = 0.0


class ModelFacts(NamedTuple):
    """What the engine asks of a model besides its decode step, and of its heads besides their tests: the stores by task."""

    num_layers: int
    vocab_size: int
    context_len: int
    eos_token_ids: frozenset[int]
    stores: dict[str, NgramStore | None]

    @classmethod
    def of(cls, model: DecoderModel, heads: dict[str, ExitHeads]) -> "ModelFacts":
        stores = {task: of_task.store for task, of_task in heads.items()}
        return cls(model.num_layers, model.vocab_size, model.context_len, model.eos_token_ids, stores)


class Replayed(NamedTuple):
    """A generation that was replayed, whose times mean nothing, and the calls its decoding makes."""

    generation: Generation
    calls: Calls


def replay(trace: SampleTrace, space: TraceSpace, facts: ModelFacts, candidate: Candidate) -> Replayed:
    """What `generate` does on the prompt of `trace` under `candidate`, which `space` must cover."""
    assert space.covers(candidate.policy), (candidate, space)
    step = ReplayStep(trace, space)
    drafters = drafters_of(candidate.policy, TracedHeads(candidate, facts.stores.get(trace.task)), trace.draw)
    generation = generate_over(step, trace, space, facts, candidate.policy, drafters)
    step.calls.num_rounds = generation.num_rounds
    step.calls.num_ngram_tokens = 0 if candidate.policy.ngram is None else len(trace.output_ids)
    return Replayed(generation, step.calls)


def replay_oracle(trace: SampleTrace, space: TraceSpace, facts: ModelFacts, max_drafts: int, *, ngrams: bool) -> Calls:
    """The calls of a perfect policy on the prompt of `trace`: no draft is wrong, and none is made later than it could be.

    Each token exits at the first exit whose head agrees with the last layer. With `ngrams` boundary 0 is such an exit.
    """
    step = ReplayStep(trace, space)
    gammas = (0.0,) * len(space.exits)
    policy = Policy(space.exits, gammas, max_drafts, ngram=0.0 if ngrams else None)
    proposers: list[Drafter] = [OracleNgrams(trace.output_ids, facts.stores.get(trace.task))] if ngrams else []
    proposers += [OracleHead(exit_layer) for exit_layer in space.exits]
    generation = generate_over(step, trace, space, facts, policy, proposers)
    assert generation.num_drafted == generation.num_accepted, trace.sample_id
    step.calls.num_rounds = generation.num_rounds
    step.calls.num_ngram_tokens = len(trace.output_ids) if ngrams else 0
    return step.calls


def generate_over(
    step: DecodeStep,
    trace: SampleTrace,
    space: TraceSpace,
    facts: ModelFacts,
    policy: Policy,
    drafters: Sequence[Drafter],
) -> Generation:
    """`generate` with `step` in place of a model's."""
    model: Any = SimpleNamespace(
        num_layers=facts.num_layers,
        vocab_size=facts.vocab_size,
        context_len=facts.context_len,
        eos_token_ids=facts.eos_token_ids,
        device=torch.device("cpu"),
        new_step=lambda width, num_positions: step,
    )
    request = Request(trace.prompt_ids, space.max_new_tokens)  # without a draw: the step knows the first token too
    decoded = generate(model, request, replace(policy, rows=space.width), drafters)
    assert decoded.generation.output_token_ids == trace.output_ids, trace.sample_id
    return decoded.generation


class TracedHeads:
    """The heads of `candidate` that the trace stands for, and their store; a gate may skip the test of one slot."""

    def __init__(self, candidate: Candidate, store: NgramStore | None) -> None:
        self.exits, gate = candidate.policy.exits, candidate.gate
        self.store = store
        # the trace stands for the gates too; the threshold is in float32, as the engine compares it
        stand_in = Gate(torch.empty(0), 0.0) if gate > 0.0 else None
        test = ExitTest(Head(()), stand_in, torch.tensor(gate).item())
        self.tests: Collection[ExitTest] = (test,) * len(self.exits)


class OracleHead:
    """Drafts the right token at exit layer `boundary` if the head there proposes it, and tests nothing else."""

    gamma = 0.0
    tests: tuple[ExitTest, ...] = ()

    def __init__(self, exit_layer: int) -> None:
        self.boundary = exit_layer

    def extend(self, token_ids: list[int]) -> None:
        """Does nothing: the trace has the output."""

    def propose(self, step: Any, round_: Round, segment: Segment, first_tested: int) -> Proposals | None:
        return step.run_and_foresee(segment)


class OracleNgrams:
    """Proposes what `NgramDrafter` does without a threshold, up to the first token that is not the output's."""

    boundary = 0
    gamma = 0.0
    tests: tuple[ExitTest, ...] = ()

    def __init__(self, output_ids: tuple[int, ...], store: NgramStore | None) -> None:
        self._output_ids = output_ids
        self._drafter = NgramDrafter(0.0, store)
        self._num_known = -1  # output tokens; the prompt comes first

    def extend(self, token_ids: list[int]) -> None:
        self._num_known = 0 if self._num_known < 0 else self._num_known + len(token_ids)
        self._drafter.extend(token_ids)

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        """The proposals after the round's drafts, all of them right, that are right."""
        proposed = self._drafter.propose(step, round_, segment, first_tested)
        right = self._output_ids[self._num_known + round_.num_drafts :]
        num_right = 0
        while num_right < min(len(proposed), len(right)) and proposed[num_right][0] == right[num_right]:
            num_right += 1
        return proposed[:num_right]


class ReplayStep:
    """A decode step that computes nothing: it knows which node each slot is, and counts its calls."""

    def __init__(self, trace: SampleTrace, space: TraceSpace) -> None:
        self.width = space.width
        self.cache: KVCache = None  # pyright: ignore[reportAttributeAccessIssue]
        self.hidden = self.logits = torch.empty(0)
        self.calls = Calls(space.width)
        self._trace = trace
        self._exit_idx = {exit_layer: idx for idx, exit_layer in enumerate(space.exits)}
        self._block_exits = space.block_exits
        self._prompt_len = len(trace.prompt_ids)
        self._stop = 0  # where the last segment ended
        self._first = 0  # the output index of slot 0
        self._token_ids = [0] * self.width
        self._num_right = 0  # slots from 0 whose tokens are the output's

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        pass

    def draw_by(self, draw: Draw | None) -> None:
        """Does nothing: what was drawn stands in the trace."""

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        return Prefilled(self._trace.output_ids[0], 1.0, torch.empty(0))

    def begin(self, first_position: int) -> None:
        self._first = first_position - self._prompt_len
        self._num_right = 0

    def put(self, slot: int, token_ids: list[int]) -> None:
        self._token_ids[slot : slot + len(token_ids)] = token_ids
        self._num_right = min(self._num_right, slot)
        output = self._trace.output_ids
        for token_id in self._token_ids[self._num_right : slot + len(token_ids)]:
            idx = self._first + self._num_right
            if idx >= len(output) or output[idx] != token_id:
                break
            self._num_right += 1

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        has_block = stop in self._block_exits
        self.calls.run_layers(stop - start + has_block, hi - lo, self._prompt_len + self._first + lo)
        self.calls.num_segments += 1
        self._stop = stop

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        return run_probe_test(self, segment, test, first_tested)

    def run_and_foresee(self, segment: Segment) -> Proposals | None:
        """Runs `segment`; the right token with certainty where the head at its end proposes it, else None."""
        self.run(*segment)
        slot = segment.hi - 1
        right = self._trace.output_ids[self._first + slot + 1]
        if self._node(slot).proposals[self._exit_idx[segment.stop]][0] != right:
            return None
        self.calls.tests[1] += 1
        return [(right, 1.0)]

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        self.calls.tests[hi - lo] += 1
        exit_idx = self._exit_idx[self._stop]
        return [self._node(slot).proposals[exit_idx] for slot in range(lo, hi)]

    def read_by(self, head: Head) -> Tensor:
        return self.hidden

    def probe(self, gate: Gate, slot: int) -> float:
        self.calls.num_gates += 1
        return self._node(slot).gates[self._exit_idx[self._stop]]

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self.calls.verifies[hi - lo] += 1
        known = self._trace.output_ids[self._first + lo + 1 : self._first + 1 + min(hi, self._num_right)]
        # what follows a wrong draft is dropped, whatever it is
        return [*known, *[-1] * (hi - lo - len(known))], [0.0] * (hi - lo)

    def _node(self, slot: int) -> Node:
        last_right = min(slot, self._num_right - 1)
        if last_right == slot:
            return self._trace.nodes[self._first + slot]
        path = tuple(self._token_ids[last_right + 1 : slot + 1])
        return self._trace.off_path[self._first + last_right, path]
