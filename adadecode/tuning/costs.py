"""What decoding costs on this machine: each call of a decode step, timed in isolation, scaled to what rounds really take.

Vectors of calls and of seconds share one layout: rows 1 to W of each of layers, tests and verifications, then gates,
rounds and tokens given to the n-gram drafter.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from adadecode.bench.parts import Call, CallTime, PartTimer, head_name
from adadecode.kernels.weights import Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads

PARTS_BUDGET_S = 6.0


class Calls:
    """How often a generation makes which call after its prefill; `layers`, `tests` and `verifies` are by rows, 0 to W."""

    def __init__(self, width: int) -> None:
        self.layers, self.tests, self.verifies = ([0] * (width + 1) for _ in range(3))
        self.num_gates = self.num_rounds = self.num_ngram_tokens = 0

    def vector(self) -> NDArray[np.float64]:
        """The counts, [3 W + 3]."""
        rest = (self.num_gates, self.num_rounds, self.num_ngram_tokens)
        return np.array([*self.layers[1:], *self.tests[1:], *self.verifies[1:], *rest], dtype=np.float64)


class Measured(NamedTuple):
    """One real generation: its calls [3 W + 3] and the seconds its decoding took."""

    calls: NDArray[np.float64]
    decode_s: float


@dataclass(frozen=True)
class Costs:
    """Seconds per call, [3 W + 3], and how they came about.

    `scale` multiplies the isolated times; `per_round_s` and `per_ngram_token_s` are what rounds and the n-gram drafter
    take besides; `error` is the root mean square of the relative error over the generations they were fitted to.
    """

    seconds: NDArray[np.float64]
    scale: float
    per_round_s: float
    per_ngram_token_s: float
    error: float

    def decode_s(self, calls: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of generations of `calls` `[..., 3 W + 3]`."""
        return calls @ self.seconds


def fit_costs(isolated: NDArray[np.float64], measured: list[Measured]) -> Costs:
    """Costs that add up to what was `measured`, in proportion to the `isolated` seconds of each call [3 W + 3]."""
    calls = np.array([one.calls for one in measured])
    decode_s = np.array([one.decode_s for one in measured])
    parts = np.column_stack([calls @ isolated, calls[:, -2], calls[:, -1]])
    (scale, per_round_s, per_ngram_token_s), _ = nnls(parts / decode_s[:, None], np.ones(len(measured)))
    seconds = scale * isolated
    seconds[-2:] += per_round_s, per_ngram_token_s
    error = np.sqrt(np.mean((calls @ seconds / decode_s - 1.0) ** 2))
    return Costs(seconds, float(scale), float(per_round_s), float(per_ngram_token_s), float(error))


class PartCosts:
    """Times every kind of call that a round over the exits of `heads` can make, on up to `max_drafts` + 1 rows."""

    def __init__(
        self,
        model: DecoderModel,
        heads: ExitHeads,
        exits: tuple[int, ...],
        max_drafts: int,
        width: int,
        prompt_ids: list[int],
        num_positions: int,
    ) -> None:
        self._width, self._num_layers, self._rows = width, model.num_layers, range(1, max_drafts + 2)
        self._segments = list(pairwise((0, *exits, model.num_layers)))
        head = next(test.head for e, test in zip(heads.exits, heads.tests, strict=True) if e == exits[0])
        gate = heads.gates.get(exits[0])
        self._test = {rows: Call("test", width, rows, exits[0], head=head_name(head)) for rows in self._rows}
        self._gate = None if gate is None else Call("test", width, 1, exits[0], head="gate")
        tests: dict[Call, Head | Gate] = dict.fromkeys(self._test.values(), head)
        if self._gate is not None and gate is not None:
            tests[self._gate] = gate
        calls = {self._layers(rows, segment) for rows in self._rows for segment in self._segments}
        calls |= {Call("verify", width, rows) for rows in self._rows} | set(tests)
        self._timer = PartTimer(model, calls, tests, prompt_ids, num_positions)

    def measure(self, budget_s: float) -> None:
        """Makes all calls again and again for about `budget_s` seconds."""
        self._timer.measure(budget_s)

    def seconds(self) -> NDArray[np.float64]:
        """Seconds per call, [3 W + 3]: the least of all measurements, which a busy machine disturbs least."""
        times, width = self._timer.times(), self._width
        seconds = np.zeros(3 * width + 3)
        for rows in self._rows:
            layers = sum(_least_s(times[self._layers(rows, segment)]) for segment in self._segments)
            seconds[rows - 1] = layers / self._num_layers
            seconds[width + rows - 1] = _least_s(times[self._test[rows]])
            seconds[2 * width + rows - 1] = _least_s(times[Call("verify", width, rows)])
        if self._gate is not None:
            seconds[-3] = _least_s(times[self._gate])
        return seconds

    def _layers(self, rows: int, segment: tuple[int, int]) -> Call:
        return Call("layers", self._width, rows, *segment)


def _least_s(time: CallTime) -> float:
    return time.min_ms / 1e3
