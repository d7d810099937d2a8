"""Traces: what every candidate exit proposes after each output token, and after the wrong drafts a policy might make.

A draft that turns out wrong is still decoded on, so a replay needs to know what the exits say behind it. A *node* is an
output token and the wrong drafts that follow it, its *path*, empty for the output itself. Only drafts that some policy
could make are followed: proposals with more confidence than the floors. Shapes: E candidate exits, D drafts at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from adadecode.engine.generate import room_for_output
from adadecode.engine.ngram import NgramDrafter
from adadecode.engine.policy import step_width
from adadecode.engine.round import check_finite
from adadecode.kernels.layers import head_step
from adadecode.kernels.step import Proposals, Segment
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Prompt

Path = tuple[int, ...]


@dataclass(frozen=True)
class TraceSpace:
    """The policies a trace is complete for: gammas of exits and n-grams from the floors up, at most `max_drafts`."""

    exits: tuple[int, ...]
    max_drafts: int
    gamma_floor: float
    ngram_floor: float
    max_new_tokens: int

    @property
    def width(self) -> int:
        return step_width(self.max_drafts)


class Node(NamedTuple):
    """What the exits say after one token: E token ids with their confidence, and E chances that gates give (or none)."""

    proposals: Proposals
    gates: tuple[float, ...]


@dataclass(frozen=True)
class SampleTrace:
    """One prompt and the model's greedy output, at least one token.

    `nodes` has one node per output token but the last; `off_path` those behind wrong drafts, by (output index, path).
    `second_confidences` has E probabilities of the second most likely token for each of `nodes`; `ngrams` what the n-gram
    drafter proposes there when a round starts, None without a match.
    """

    task: str
    sample_id: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    nodes: list[Node]
    off_path: dict[tuple[int, Path], Node]
    second_confidences: list[tuple[float, ...]]
    ngrams: list[tuple[int, float] | None]


@torch.inference_mode()
def record(model: DecoderModel, heads: ExitHeads, space: TraceSpace, prompt: Prompt) -> SampleTrace:
    """Decodes `prompt` as vanilla does, testing every exit of `space` at every token and behind wrong drafts.

    Kernels, width and columns are the engine's own, so that every proposal has the bits it has there. `heads` has no
    gate threshold. Raises PromptTooLongError and NonFiniteLogitsError.
    """
    prompt_ids = prompt.token_ids
    limit = min(space.max_new_tokens, room_for_output(model, len(prompt_ids)))
    recorder = _Recorder(model, heads, space, prompt_ids, limit)
    output = [recorder.prefill()]
    trace = SampleTrace(prompt.task, prompt.sample_id, tuple(prompt_ids), (), [], {}, [], [])
    while output[-1] not in model.eos_token_ids and len(output) < limit:
        idx = len(output) - 1
        node, second, next_id = recorder.on_path(idx, output[-1])
        trace.nodes.append(node)
        trace.second_confidences.append(second)
        trace.ngrams.append(recorder.ngrams[0].successor())
        for path, found in recorder.behind(idx, (), node, next_id):
            trace.off_path[idx, path] = found
        output.append(next_id)
        recorder.extend(output)
    return replace(trace, output_ids=tuple(output))


class _Recorder:
    """One request's decode step, and the n-gram drafters of rounds that began 0 to D tokens ago."""

    def __init__(
        self, model: DecoderModel, heads: ExitHeads, space: TraceSpace, prompt_ids: list[int], limit: int
    ) -> None:
        self._model, self._space, self._limit = model, space, limit
        self._prompt_ids, self._output = prompt_ids, list[int]()
        self._step = model.new_step(space.width, len(prompt_ids) + limit)
        self._tests = {e: test for e, test in zip(heads.exits, heads.tests, strict=True) if e in space.exits}
        self._gates = {e: gate for e, gate in heads.gates.items() if e in space.exits}
        self._step.prepare((*space.exits, model.num_layers), self._tests.values())
        rounds = range(space.max_drafts + 1)  # by tokens ago
        self.ngrams = [NgramDrafter(space.ngram_floor, heads.store) for _ in rounds]

    def prefill(self) -> int:
        """The first output token."""
        top, first_id = self._step.prefill(self._prompt_ids).max(dim=-1)
        check_finite([float(top)], len(self._prompt_ids) - 1)
        for drafter in self.ngrams:
            drafter.extend(self._prompt_ids)
        self.extend([int(first_id)])
        return int(first_id)

    def extend(self, output: list[int]) -> None:
        """Goes on by one verified token, the last of `output`."""
        self._output = output
        for ago, drafter in enumerate(self.ngrams):
            if len(output) > ago:
                drafter.extend([output[-1 - ago]])

    def on_path(self, idx: int, token_id: int) -> tuple[Node, tuple[float, ...], int]:
        """The node of output token `idx`, the second confidences there, and the model's own next token."""
        step, model = self._step, self._model
        step.begin(len(self._prompt_ids) + idx)
        step.put(0, [token_id])
        second: list[float] = []
        node = self._pass_exits(0, second)
        step.run(0, 1, self._space.exits[-1], model.num_layers)
        (next_id,), tops = step.verify(0, 1)
        check_finite(tops, len(self._prompt_ids) + idx)
        return node, tuple(second), next_id

    def behind(self, idx: int, path: Path, node: Node, next_id: int | None) -> Iterator[tuple[Path, Node]]:
        """Every node that wrong drafts after `path` can lead to; they stand in the slots after output token `idx`."""
        if len(path) == self._space.max_drafts or idx + len(path) + 1 > self._limit - 2:
            return
        for token_id in self._drafts(path, node):
            if token_id != next_id and token_id not in self._model.eos_token_ids:
                slot = len(path) + 1
                self._step.put(slot, [token_id])
                child = self._pass_exits(slot, None)
                yield (*path, token_id), child
                yield from self.behind(idx, (*path, token_id), child, None)

    def _drafts(self, path: Path, node: Node) -> list[int]:
        """What a policy might draft at `node`: by any exit, or by n-grams in a round that began at most D drafts ago."""
        drafts = [token_id for token_id, confidence in node.proposals if confidence > self._space.gamma_floor]
        for ago in range(min(self._space.max_drafts - len(path), len(self._output))):
            pending = self._output[len(self._output) - ago :]
            drafts += [token_id for token_id, _ in self.ngrams[ago].chain([*pending, *path], 1)]
        return list(dict.fromkeys(drafts))

    def _pass_exits(self, slot: int, second: list[float] | None) -> Node:
        """Runs `slot` from layer 1 to the last exit and tests it at each; appends second confidences to `second`."""
        step, model = self._step, self._model
        proposals: Proposals = []
        gates = []
        for start, stop in pairwise((0, *self._space.exits)):
            test = self._tests[stop]
            tested = step.run_to_exit(Segment(slot, slot + 1, start, stop), test, slot)
            assert tested is not None, "a trace is recorded without gates"
            proposals += tested
            if stop in self._gates:
                gates.append(step.probe(self._gates[stop], slot))
            if second is not None:
                logits = head_step(
                    test.head, model.weights.norm, model.weights.shape.eps, step.hidden[slot, None]
                ).float()
                second.append(float(logits.softmax(dim=-1).topk(min(2, logits.shape[-1])).values[0, -1]))
        return Node(proposals, tuple(gates))
