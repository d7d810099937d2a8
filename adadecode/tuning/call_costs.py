"""What each call of a decode step costs in isolation, in the layout of `Costs`. D is the most drafts of the space."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adadecode.bench.calls import Call, head_name
from adadecode.bench.timer import CallTime, CallTimer
from adadecode.engine.generate import room_for_output
from adadecode.kernels.sampling import Draw
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.tuning.trace import TraceSpace

if TYPE_CHECKING:
    from adadecode.kernels.weights import Gate, Head


LEAST_DISTANCE = 32  # columns between the two places where layers are timed; nearer ones tell nothing of columns


class CallCosts:
    """Times every kind of call that a round over `heads` can make in `space`, on rows 1 to D + 1.

    Layers are timed right behind the shortest of `prompts` and in the middle of the output of the longest.
    """

    def __init__(
        self,
        model: DecoderModel,
        heads: ExitHeads,
        space: TraceSpace,
        prompts: list[list[int]],
        draw: Draw | None = None,
    ) -> None:
        exits, width = space.exits, space.width
        self._width, self._num_layers, self._rows = width, model.num_layers, range(1, space.max_drafts + 2)
        head = next(test.head for e, test in zip(heads.exits, heads.tests, strict=True) if e == exits[0])
        gate = heads.gates.get(exits[0])
        self._test = {rows: Call("test", width, rows, exits[0], head=head_name(head)) for rows in self._rows}
        self._gate = None if gate is None else Call("test", width, 1, exits[0], head="gate")
        tests: dict[Call, Head | Gate] = dict.fromkeys(self._test.values(), head)
        if self._gate is not None and gate is not None:
            tests[self._gate] = gate
        calls = {self._layers(rows) for rows in self._rows}
        calls |= {Call("verify", width, rows) for rows in self._rows} | set(tests)
        shortest, longest = min(prompts, key=len), max(prompts, key=len)
        room = min(space.max_new_tokens, room_for_output(model, len(longest)))
        near, far = len(shortest) + min(2 * width, room), len(longest) + max(width, room)
        self._timers = [
            CallTimer(model, calls, tests, shortest, near, draw),
            CallTimer(model, calls, tests, longest, far, draw),
        ]

    def measure(self, budget_s: float) -> None:
        """Makes all calls again and again for about `budget_s` seconds."""
        for timer in self._timers:
            timer.measure(budget_s / len(self._timers))

    def seconds(self) -> NDArray[np.float64]:
        """Seconds per call, [4 W + 4]: the least of all measurements, which a busy machine disturbs least."""
        (near, far), width = (timer.times() for timer in self._timers), self._width
        near_column, far_column = (timer.position(width) for timer in self._timers)
        seconds = np.zeros(4 * width + 4)
        for rows in self._rows:
            near_s, far_s = (_least_s(times[self._layers(rows)]) / self._num_layers for times in (near, far))
            distance = far_column - near_column
            per_column = max(0.0, far_s - near_s) / distance if distance >= LEAST_DISTANCE else 0.0
            seconds[rows - 1] = max(0.0, far_s - per_column * far_column)
            seconds[3 * width + rows - 1] = per_column
            seconds[width + rows - 1] = min(_least_s(times[self._test[rows]]) for times in (near, far))
            verify = Call("verify", width, rows)
            seconds[2 * width + rows - 1] = min(_least_s(times[verify]) for times in (near, far))
        if self._gate is not None:
            seconds[-4] = min(_least_s(times[self._gate]) for times in (near, far))
        return seconds

    @property
    def num_columns(self) -> int:
        """Columns before a row in the middle of the output of the longest prompt."""
        return self._timers[-1].position(self._width)

    def _layers(self, rows: int) -> Call:
        """All layers at once: what cutting them into segments takes is fitted, not timed."""
        return Call("layers", self._width, rows, 0, self._num_layers)


def _least_s(time: CallTime) -> float:
    return time.min_ms / 1e3
