"""A decode step over stages: of a step on each device, which are eager, compiled or graphs like those of one device."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from adadecode.kernels.eager import EagerStep
from adadecode.kernels.sampling import Draw
from adadecode.kernels.stages import Stage, computing_on, stages_between
from adadecode.kernels.step import Prefilled, Proposals, Segment, blocks_of, run_probe_test
from adadecode.kernels.weights import ExitTest, Gate, Head


class StagedStep:
    """The steps of the stages as one. Slots rest on the first device, home, where they are embedded, tested and verified.

    Rows that pass layers of another stage are copied to its device, from there to the next, and home after the last: copies
    change no bit, and each stage computes all W rows in the shapes that one device would.
    """

    def __init__(self, stages: Sequence[Stage], steps: Sequence[EagerStep]) -> None:
        """`steps` has one for each of `stages`, over one cache, with the weights as its device has them."""
        self._stages, self._steps = stages, steps
        self._home = home = steps[0]
        self.width, self.cache, self.hidden, self.logits = home.width, home.cache, home.hidden, home.logits
        self._block_exits: set[int] = set()

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        tests = list(tests)
        self._home.prepare((), tests)
        self._block_exits = {*blocks_of(tests)}
        for start, stop in pairwise((0, *boundaries)):
            self.run(0, 0, start, stop)  # no slot takes part: what is captured or compiled is so now

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        return self._home.prefill(prompt_ids)

    def draw_by(self, draw: Draw | None) -> None:
        self._home.draw_by(draw)

    def begin(self, first_position: int) -> None:
        for step in self._steps:
            step.begin(first_position)

    def put(self, slot: int, token_ids: list[int]) -> None:
        self._home.put(slot, token_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        at = self._home
        for idx, part in stages_between(self._stages, start, stop):
            step = self._steps[idx]
            if step is not at:
                step.hidden[lo:hi].copy_(at.hidden[lo:hi])
            at = step
            with computing_on(part.device):
                step.run(lo, hi, part.start, part.stop)
        if at is not self._home:
            self.hidden[lo:hi].copy_(at.hidden[lo:hi])
            if stop in self._block_exits:
                self._home.run(lo, hi, stop, stop)  # no layer but the block

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        return run_probe_test(self, segment, test, first_tested)

    def read_by(self, head: Head) -> Tensor:
        return self._home.read_by(head)

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        return self._home.test(head, lo, hi)

    def probe(self, gate: Gate, slot: int) -> float:
        return self._home.probe(gate, slot)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        return self._home.verify(lo, hi)
