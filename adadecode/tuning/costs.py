"""What decoding costs on this machine: each call of a decode step, timed in isolation, scaled to what rounds really take.

Vectors of calls and of seconds share one layout: rows 1 to W of each of layers, tests and verifications, then gates,
segments, rounds and tokens given to the n-gram drafter.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls


class Calls:
    """How often a generation makes which call after its prefill; `layers`, `tests` and `verifies` are by rows, 0 to W."""

    def __init__(self, width: int) -> None:
        self.layers, self.tests, self.verifies = ([0] * (width + 1) for _ in range(3))
        self.num_gates = self.num_segments = self.num_rounds = self.num_ngram_tokens = 0

    def vector(self) -> NDArray[np.float64]:
        """The counts, [3 W + 4]."""
        rest = (self.num_gates, self.num_segments, self.num_rounds, self.num_ngram_tokens)
        return np.array([*self.layers[1:], *self.tests[1:], *self.verifies[1:], *rest], dtype=np.float64)


class MeasuredGeneration(NamedTuple):
    """One real generation: its calls [3 W + 4] and the seconds its decoding took."""

    calls: NDArray[np.float64]
    decode_s: float


@dataclass(frozen=True)
class Costs:
    """Seconds per call, [3 W + 4], and how they came about.

    `scale` multiplies the isolated times; what calls that run layers, rounds and the n-gram drafter take besides is
    `per_segment_s`, `per_round_s` and `per_ngram_token_s`; `error` is the root mean square of the relative error over the
    generations they were fitted to.
    """

    seconds: NDArray[np.float64]
    scale: float
    per_segment_s: float
    per_round_s: float
    per_ngram_token_s: float
    error: float

    def decode_s(self, calls: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of generations of `calls` `[..., 3 W + 4]`."""
        return calls @ self.seconds


def fit_costs(isolated: NDArray[np.float64], measured: list[MeasuredGeneration]) -> Costs:
    """Costs that add up to what was `measured`, in proportion to the `isolated` seconds of each call [3 W + 4]."""
    calls = np.array([one.calls for one in measured])
    decode_s = np.array([one.decode_s for one in measured])
    parts = np.column_stack([calls @ isolated, calls[:, -3:]])
    (scale, *rest), _ = nnls(parts / decode_s[:, None], np.ones(len(measured)))
    seconds = scale * isolated
    seconds[-3:] += rest
    error = np.sqrt(np.mean((calls @ seconds / decode_s - 1.0) ** 2))
    return Costs(seconds, float(scale), *map(float, rest), error=float(error))


def break_even(seconds: NDArray[np.float64], num_layers: int, boundary: int, max_drafts: int) -> float:
    """The chance from which on a draft made at `boundary` can pay, when calls take `seconds` [3 W + 4].

    It costs the layers below, a test, and a row more in all others; if it holds a token of vanilla's is saved, which is the
    most that can be. The row is the cheapest there is.
    """
    width = len(seconds) // 3 - 1
    layers, tests, verifies = (seconds[part * width : part * width + max_drafts + 1] for part in range(3))
    row_of_layer, row_of_verify = (max(0.0, float(np.diff(by_rows).min())) for by_rows in (layers, verifies))
    below = boundary * layers[0] + tests[0] if boundary else 0.0
    draft_s = below + (num_layers - boundary) * row_of_layer + row_of_verify
    return float(draft_s / (num_layers * layers[0] + verifies[0]))
