"""What each call of a decode step costs on its own.

Their sum is what the same rounds would take if nothing had to be done between the calls.
"""

import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from adadecode.bench.calls import Call
from adadecode.kernels.sampling import Draw
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel

MAX_REPETITIONS = 40
MIN_REPETITIONS = 5
BACK_TO_BACK = 8  # segments run between two events on a CUDA device


class CallTime(NamedTuple):
    """Milliseconds of one call: the median and the extremes of `num_repetitions` measurements."""

    ms: float
    min_ms: float
    max_ms: float
    num_repetitions: int

    @classmethod
    def of(cls, times_ms: list[float]) -> "CallTime":
        return cls(statistics.median(times_ms), min(times_ms), max(times_ms), len(times_ms))


class CallTimer:
    """Times each of `calls` in isolation, at a position in the middle of the output.

    They are made in turns, in the order a round has them, so that a call finds in the processor's caches what it finds
    there in a round. On a CUDA device a segment is timed by events around several calls, and any other call until the
    device has done it.
    """

    def __init__(
        self,
        model: DecoderModel,
        calls: Collection[Call],
        tests: Mapping[Call, Head | Gate],
        prompt_ids: list[int],
        num_positions: int,
        draw: Draw | None = None,
    ) -> None:
        ordered = sorted(calls, key=lambda call: (call.width, call.rows, _place(call, model.num_layers)))
        self._tests = tests
        self._benches = {
            width: _Workbench(
                model, width, [call for call in ordered if call.width == width], tests, prompt_ids, num_positions, draw
            )
            for width in {call.width for call in ordered}
        }
        self._times_ms: dict[Call, list[float]] = {call: [] for call in ordered}

    @torch.inference_mode()
    def measure(self, budget_s: float) -> None:
        """Makes all calls again and again for about `budget_s` seconds; the first time is not counted."""
        for bench in self._benches.values():
            bench.make_ready()
        started = time.perf_counter()
        for repetition in range(MAX_REPETITIONS + 1):
            if repetition > MIN_REPETITIONS and time.perf_counter() - started > budget_s:
                break
            for call, times_ms in self._times_ms.items():
                duration_ms = self._benches[call.width].time_ms(call, self._tests.get(call))
                if repetition:  # the first may compile or capture
                    times_ms.append(duration_ms)

    def position(self, width: int) -> int:
        """Where the first row of calls of `width` stands."""
        return self._benches[width].position

    def times(self) -> dict[Call, CallTime]:
        """What was measured of each call."""
        return {call: CallTime.of(times_ms) for call, times_ms in self._times_ms.items()}


def _place(call: Call, num_layers: int) -> tuple[int, int]:
    """Where in a round a call stands: after how many layers, and a gate and the test after the segment that leads there."""
    match call.kind:
        case "enter":
            return 0, 0
        case "layers":
            return call.stop, 0
        case "test":
            return call.start, {"gate": 1, "shortlist": 2}.get(call.head or "", 3)
        case "verify":
            return num_layers, 1


class _Workbench:
    """A decode step with hidden states as they are at every boundary the calls start from."""

    @torch.inference_mode()
    def __init__(
        self,
        model: DecoderModel,
        width: int,
        calls: list[Call],
        tests: Mapping[Call, Head | Gate],
        prompt_ids: list[int],
        num_positions: int,
        draw: Draw | None,
    ) -> None:
        self.device, self.num_layers = model.device, model.num_layers
        self.step = model.new_step(width, num_positions)
        # any output's draw costs the same, so its places count from the prompt here
        self.step.draw_by(draw and replace(draw, first_position=len(prompt_ids)))
        self._tests = [ExitTest(head) for head in tests.values() if isinstance(head, Head)]
        middle = (len(prompt_ids) + num_positions) // 2
        self.position = max(0, min(middle, num_positions - width))
        self.make_ready()
        self.step.prefill(prompt_ids)
        self.token_ids = [prompt_ids[slot % len(prompt_ids)] for slot in range(width)]
        num_rows = max(call.rows for call in calls)
        self.step.begin(self.position)
        self.step.put(0, self.token_ids[:num_rows])
        self.hidden = {0: self.step.hidden.clone()}
        starts = {call.start for call in calls if call.kind in ("layers", "test")} - {0}
        reached = 0
        for boundary in sorted({*starts, self.num_layers}):
            self.step.run(0, num_rows, reached, boundary)
            self.hidden[boundary] = self.step.hidden.clone()
            reached = boundary

    def make_ready(self) -> None:
        """Sets the step up again: on a CUDA device generations use the same one."""
        self.step.prepare((), self._tests)
        self.step.begin(self.position)

    def time_ms(self, call: Call, test: Head | Gate | None) -> float:
        """One measurement of `call`; `test` is what a test runs."""
        step, rows = self.step, call.rows
        step.hidden.copy_(self.hidden[self.num_layers if call.kind == "verify" else call.start])
        if call.kind == "layers" and self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(BACK_TO_BACK):
                step.run(0, rows, call.start, call.stop)
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / BACK_TO_BACK
        self._synchronize()
        started = time.perf_counter_ns()
        match call.kind:
            case "enter":
                step.begin(self.position)
                step.put(0, self.token_ids[:rows])
            case "layers":
                step.run(0, rows, call.start, call.stop)
            case "test":
                assert test is not None, call
                if isinstance(test, Gate):
                    step.probe(test, 0)
                else:
                    step.test(test, 0, rows)
            case "verify":
                step.verify(0, rows)
        self._synchronize()
        return (time.perf_counter_ns() - started) / 1e6

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
