"""What a generation asks of its decode step: a step that passes every call on, writes it down and counts it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from adadecode.engine.drafters import Heads
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Prefilled, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel

HeadName = Literal["full", "shortlist", "gate"]


@dataclass(frozen=True)
class Call:
    """One kind of call of a decode step of `width` rows, on `rows` of them; calls of a kind do the same work.

    `enter` puts tokens before layer 1; `layers` runs layers [start, stop); `test` is an exit head or gate at layer `start`;
    `verify` is the model's own head.
    """

    kind: Literal["enter", "layers", "test", "verify"]
    width: int
    rows: int
    start: int = 0
    stop: int = 0
    head: HeadName | None = None


class RecordingStep:
    """A decode step that records what it passes on to `step`.

    `log` has what was asked since the prefill, in order, and what the exits answered; `calls` counts the kinds of call
    that takes, a test for what it is made of; `tests` are the heads and gates that were run.
    """

    def __init__(self, step: DecodeStep) -> None:
        self._step = step
        self.width, self.cache, self.hidden, self.logits = step.width, step.cache, step.hidden, step.logits
        self.log: list[tuple[object, ...]] = []
        self.calls: Counter[Call] = Counter()
        self.tests: dict[Call, Head | Gate] = {}
        self._exit_layer = 0

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        self._step.prepare(boundaries, tests)

    def draw_by(self, draw: Draw | None) -> None:
        self._step.draw_by(draw)

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        return self._step.prefill(prompt_ids)

    def begin(self, first_position: int) -> None:
        self.log.append(("begin", first_position))
        self._step.begin(first_position)

    def put(self, slot: int, token_ids: list[int]) -> None:
        self.log.append(("put", slot, tuple(token_ids)))
        self.calls[Call("enter", self.width, len(token_ids))] += 1
        self._step.put(slot, token_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self.log.append(("run", lo, hi, start, stop))
        self._count_layers(Segment(lo, hi, start, stop))
        self._step.run(lo, hi, start, stop)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        proposals = self._step.run_to_exit(segment, test, first_tested)
        self.log.append(("exit", *segment, first_tested, proposals))
        self._count_layers(segment)
        if test.gate is not None and first_tested == segment.hi - 1:  # where a slot is alone, the gate comes first
            self._count_test(test.gate, 1)
        if proposals is not None:
            self._count_test(test.head, segment.hi - first_tested)
        return proposals

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        proposals = self._step.test(head, lo, hi)
        self.log.append(("test", lo, hi, proposals))
        self._count_test(head, hi - lo)
        return proposals

    def read_by(self, head: Head) -> Tensor:
        return self._step.read_by(head)

    def probe(self, gate: Gate, slot: int) -> float:
        chance = self._step.probe(gate, slot)
        self.log.append(("probe", slot, chance))
        self._count_test(gate, 1)
        return chance

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self.log.append(("verify", lo, hi))
        self.calls[Call("verify", self.width, hi - lo)] += 1
        return self._step.verify(lo, hi)

    def _count_layers(self, segment: Segment) -> None:
        self.calls[Call("layers", self.width, segment.hi - segment.lo, segment.start, segment.stop)] += 1
        self._exit_layer = segment.stop

    def _count_test(self, test: Head | Gate, rows: int) -> None:
        call = Call("test", self.width, rows, self._exit_layer, head=head_name(test))
        self.calls[call] += 1
        self.tests.setdefault(call, test)


class RecordingModel:
    """A model whose last new decode step, `step`, is a recording one; everything else is `model`'s."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self.step: RecordingStep | None = None

    def new_step(self, width: int, num_positions: int) -> RecordingStep:
        self.step = RecordingStep(self._model.new_step(width, num_positions))
        return self.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def head_name(test: Head | Gate) -> HeadName:
    """What `test` is: a gate, or a head over the whole vocabulary or a shortlist of it."""
    if isinstance(test, Gate):
        return "gate"
    return "full" if test.token_ids is None else "shortlist"


def used_tests(heads: Heads, exits: tuple[int, ...], width: int) -> dict[Call, Head | Gate]:
    """The gates and heads of `heads` are tested at `exits`, as calls on one row."""
    used = {}
    for exit_layer, test in zip(heads.exits, heads.tests, strict=True):
        if exit_layer in exits:
            both = (test.head,) if test.gate is None else (test.head, test.gate)
            used |= {Call("test", width, 1, exit_layer, head=head_name(tested)): tested for tested in both}
    return used
