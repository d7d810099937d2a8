"""Traces: what every candidate exit proposes after each output token, and after the wrong drafts a policy might make.

A draft that turns out wrong is still decoded on, so a replay needs to know what the exits say behind it. A *node* is an
output token and the wrong drafts that follow it, its *path*, empty for the output itself. Only drafts that some policy
could make are followed: those that hold with all of their path with more probability than a floor. Shapes: E candidate
exits, D drafts at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from adadecode.engine.generate import room_for_output
from adadecode.engine.ngram import NgramDrafter
from adadecode.engine.policy import Policy, step_width
from adadecode.engine.round import check_finite
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import Proposals, Segment
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Prompt

Path = tuple[int, ...]
ROUNDING = 1.0 - 1e-9  # a product of confidences depends a little on the order in which they are multiplied


@dataclass(frozen=True)
class Floors:
    """The least chance that all pending drafts hold at which a draft is followed: one made at an exit, or by n-grams."""

    exits: tuple[float, ...]  # [E]
    ngram: float


@dataclass(frozen=True)
class TraceSpace:
    """The policies a trace is complete for: those that draft nothing below the floors, and at most `max_drafts`.

    A segment that ends at one of `block_exits` runs a layer more, the block of the head there.
    """

    exits: tuple[int, ...]
    max_drafts: int
    floors: Floors
    max_new_tokens: int
    block_exits: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return step_width(self.max_drafts)

    def floor_at(self, boundary: int) -> float:
        """The floor of drafts made at `boundary`, 0 for n-grams."""
        return self.floors.exits[self.exits.index(boundary)] if boundary else self.floors.ngram

    def covers(self, policy: Policy) -> bool:
        """Whether all that `policy` may draft lies above the floors.

        Where its gammas are of the token alone, the drafts before may be as unsure as its least gamma, each of them.
        """
        gammas = policy.draft_gammas
        if not gammas or policy.max_drafts == 0:
            return True
        if policy.max_drafts > self.max_drafts or not set(policy.exits) <= set(self.exits):
            return False
        pending = 1.0 if policy.stop == "chain" else min(gammas.values()) ** (policy.max_drafts - 1)
        return all(pending * gamma >= self.floor_at(boundary) for boundary, gamma in gammas.items())


class Node(NamedTuple):
    """What the exits say after one token: E token ids with their confidence, and E chances that gates give (or none)."""

    proposals: Proposals
    gates: tuple[float, ...]


@dataclass(frozen=True)
class SampleTrace:
    """One prompt and the model's output, greedy or drawn by `draw`, at least one token.

    `nodes` has one node per output token but the last; `off_path` those behind wrong drafts, by (output index, path).
    `ngrams` has for each of `nodes` what the n-gram drafter proposes there when a round starts, None without a match.
    """

    task: str
    sample_id: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    nodes: list[Node]
    off_path: dict[tuple[int, Path], Node]
    ngrams: list[tuple[int, float] | None]
    draw: Draw | None = None


@torch.inference_mode()
def record(
    model: DecoderModel, heads: ExitHeads, space: TraceSpace, prompt: Prompt, draw: Draw | None = None
) -> SampleTrace:
    """Decodes `prompt` as vanilla does, testing every exit of `space` at every token and behind wrong drafts.

    Tokens are drawn by `draw`, the exits' proposals too. Kernels, width and columns are the engine's own, so that every
    proposal has the bits it has there. `heads` has no gate threshold. Raises PromptTooLongError and NonFiniteLogitsError.
    """
    prompt_ids = prompt.token_ids
    limit = min(space.max_new_tokens, room_for_output(model, len(prompt_ids)))
    recorder = _Recorder(model, heads, space, prompt_ids, limit, draw)
    output = [recorder.prefill()]
    trace = SampleTrace(prompt.task, prompt.sample_id, tuple(prompt_ids), (), [], {}, [], draw)
    while output[-1] not in model.eos_token_ids and len(output) < limit:
        idx = len(output) - 1
        node, next_id = recorder.on_path(idx, output[-1])
        trace.nodes.append(node)
        trace.ngrams.append(recorder.ngrams[0].successor())
        for path, found in recorder.behind(idx, (), 1.0, node, next_id):
            trace.off_path[idx, path] = found
        output.append(next_id)
        recorder.extend(output)
    return replace(trace, output_ids=tuple(output))


class _Recorder:
    """One request's decode step, and the n-gram drafters of rounds that began 0 to D tokens ago."""

    def __init__(
        self,
        model: DecoderModel,
        heads: ExitHeads,
        space: TraceSpace,
        prompt_ids: list[int],
        limit: int,
        draw: Draw | None,
    ) -> None:
        self._model, self._space, self._limit = model, space, limit
        self._prompt_ids, self._output = prompt_ids, list[int]()
        self._step = model.new_step(space.width, len(prompt_ids) + limit)
        self._tests = {e: test for e, test in zip(heads.exits, heads.tests, strict=True) if e in space.exits}
        self._gates = {e: gate for e, gate in heads.gates.items() if e in space.exits}
        self._step.draw_by(draw)
        self._step.prepare((*space.exits, model.num_layers), self._tests.values())
        rounds = range(space.max_drafts + 1)  # by tokens ago
        self.ngrams = [NgramDrafter(space.floors.ngram, heads.store, draw) for _ in rounds]

    def prefill(self) -> int:
        """The first output token."""
        first_id, top, _ = self._step.prefill(self._prompt_ids)
        check_finite([top], len(self._prompt_ids) - 1)
        for drafter in self.ngrams:
            drafter.extend(self._prompt_ids)
        self.extend([first_id])
        return first_id

    def extend(self, output: list[int]) -> None:
        """Goes on by one verified token, the last of `output`."""
        self._output = output
        for ago, drafter in enumerate(self.ngrams):
            if len(output) > ago:
                drafter.extend([output[-1 - ago]])

    def on_path(self, idx: int, token_id: int) -> tuple[Node, int]:
        """The node of output token `idx`, and the model's own next token."""
        step, model = self._step, self._model
        step.begin(len(self._prompt_ids) + idx)
        step.put(0, [token_id])
        node = self._pass_exits(0)
        step.run(0, 1, self._space.exits[-1], model.num_layers)
        (next_id,), tops = step.verify(0, 1)
        check_finite(tops, len(self._prompt_ids) + idx)
        return node, next_id

    def behind(
        self, idx: int, path: Path, chance: float, node: Node, next_id: int | None
    ) -> Iterator[tuple[Path, Node]]:
        """Every node that wrong drafts after `path` can lead to; they stand in the slots after output token `idx`.

        All of `path` holds with probability `chance` at most, whoever drafted it and judged it again.
        """
        if len(path) == self._space.max_drafts or idx + len(path) + 1 > self._limit - 2:
            return
        for token_id, confidence in self._drafts(path, chance, node).items():
            if token_id != next_id and token_id not in self._model.eos_token_ids:
                slot = len(path) + 1
                self._step.put(slot, [token_id])
                child = self._pass_exits(slot)
                yield (*path, token_id), child
                yield from self.behind(idx, (*path, token_id), chance * confidence, child, None)

    def _drafts(self, path: Path, chance: float, node: Node) -> dict[int, float]:
        """What a policy might draft at `node`, with the most confidence that any drafter has in it.

        An exit drafts, or n-grams in a round that began at most D drafts ago.
        """
        said = list(zip(node.proposals, self._space.floors.exits, strict=True))
        for ago in range(min(self._space.max_drafts - len(path), len(self._output))):
            pending = self._output[len(self._output) - ago :]
            said += [
                (of_ngrams, self._space.floors.ngram) for of_ngrams in self.ngrams[ago].chain([*pending, *path], 1)
            ]
        drafts: dict[int, float] = {}
        above = set[int]()
        for (token_id, confidence), floor in said:
            drafts[token_id] = max(confidence, drafts.get(token_id, 0.0))
            if chance * confidence > floor * ROUNDING:
                above.add(token_id)
        return {token_id: confidence for token_id, confidence in drafts.items() if token_id in above}

    def _pass_exits(self, slot: int) -> Node:
        """Runs `slot` from layer 1 to the last exit and tests it at each."""
        step = self._step
        proposals: Proposals = []
        gates: list[float] = []
        for start, stop in pairwise((0, *self._space.exits)):
            tested = step.run_to_exit(Segment(slot, slot + 1, start, stop), self._tests[stop], slot)
            assert tested is not None, "a trace is recorded without gates"
            proposals += tested
            if stop in self._gates:
                gates.append(step.probe(self._gates[stop], slot))
        return Node(proposals, tuple(gates))
