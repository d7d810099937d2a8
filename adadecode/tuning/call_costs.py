"""What each call of a decode step costs in isolation, in the layout of `Costs`. D is the most drafts of the space."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adadecode.bench.calls import Call, head_name
from adadecode.bench.timer import CallTime, CallTimer
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.tuning.trace import TraceSpace

if TYPE_CHECKING:
    from adadecode.kernels.weights import Gate, Head


class CallCosts:
    """Times every kind of call that a round over `heads` can make in `space`, on rows 1 to D + 1."""

    def __init__(
        self, model: DecoderModel, heads: ExitHeads, space: TraceSpace, prompt_ids: list[int], num_positions: int
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
        self._timer = CallTimer(model, calls, tests, prompt_ids, num_positions)

    def measure(self, budget_s: float) -> None:
        """Makes all calls again and again for about `budget_s` seconds."""
        self._timer.measure(budget_s)

    def seconds(self) -> NDArray[np.float64]:
        """Seconds per call, [3 W + 4]: the least of all measurements, which a busy machine disturbs least."""
        times, width = self._timer.times(), self._width
        seconds = np.zeros(3 * width + 4)
        for rows in self._rows:
            seconds[rows - 1] = _least_s(times[self._layers(rows)]) / self._num_layers
            seconds[width + rows - 1] = _least_s(times[self._test[rows]])
            seconds[2 * width + rows - 1] = _least_s(times[Call("verify", width, rows)])
        if self._gate is not None:
            seconds[-4] = _least_s(times[self._gate])
        return seconds

    def _layers(self, rows: int) -> Call:
        """All layers at once: what cutting them into segments takes is fitted, not timed."""
        return Call("layers", self._width, rows, 0, self._num_layers)


def _least_s(time: CallTime) -> float:
    return time.min_ms / 1e3
