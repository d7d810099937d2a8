"""What decoding costs on this machine: each call of a decode step, timed in isolation, scaled to what rounds really take.

Vectors of calls and of seconds share one layout: rows 1 to W of each of layers, tests, verifications and columns, then
gates, segments, rounds and tokens given to the n-gram drafter. Columns are layers times the column at which their rows
begin: keys and values of a longer text take longer to read.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

FIT_ROUNDS = 8
TINY = 1e-12
SCALE_WEIGHT = 0.1  # of the prior that calls take in rounds what they take alone, over that of what was measured


class Calls:
    """How often a generation makes which call after its prefill; those by rows are lists from 0 to W."""

    def __init__(self, width: int) -> None:
        self.layers, self.tests, self.verifies, self.columns = ([0] * (width + 1) for _ in range(4))
        self.num_gates = self.num_segments = self.num_rounds = self.num_ngram_tokens = 0

    def run_layers(self, num_layers: int, rows: int, first_column: int) -> None:
        """Counts `num_layers` layers on `rows` rows from `first_column` on."""
        self.layers[rows] += num_layers
        self.columns[rows] += num_layers * first_column

    def vector(self) -> NDArray[np.float64]:
        """The counts, [4 W + 4]."""
        by_rows = (self.layers, self.tests, self.verifies, self.columns)
        rest = (self.num_gates, self.num_segments, self.num_rounds, self.num_ngram_tokens)
        return np.array([*(count for counts in by_rows for count in counts[1:]), *rest], dtype=np.float64)


class MeasuredPair(NamedTuple):
    """A real generation and vanilla's of the same prompt, in the same turn: their calls [4 W + 4] and seconds."""

    calls: NDArray[np.float64]
    decode_s: float
    vanilla_calls: NDArray[np.float64]
    vanilla_s: float


@dataclass(frozen=True)
class Costs:
    """Seconds per call, [4 W + 4], and how they came about.

    `scale` multiplies the isolated times; what calls that run layers, rounds and the n-gram drafter take besides is
    `per_segment_s`, `per_round_s` and `per_ngram_token_s`; `error` is the median of the relative errors of the speedups
    they were fitted to, each of a single generation.
    """

    seconds: NDArray[np.float64]
    scale: float
    per_segment_s: float
    per_round_s: float
    per_ngram_token_s: float
    error: float

    def decode_s(self, calls: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of generations of `calls` `[..., 4 W + 4]`."""
        return calls @ self.seconds


def fit_costs(isolated: NDArray[np.float64], measured: list[MeasuredPair]) -> Costs:
    """Costs that give the speedups that were `measured`, in proportion to the `isolated` seconds of each call [4 W + 4].

    Speedups, not seconds: a machine that others share is slower for a while, and is so for both of a pair. Where it stood
    still for one of them that pair hardly counts: least absolute errors, by least squares weighted anew.
    """
    decode_s, vanilla_s = (np.array([one[place] for one in measured]) for place in (1, 3))
    calls, vanilla_calls = (np.array([one[place] for one in measured]) for place in (0, 2))

    def parts(calls: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([calls @ isolated, calls[:, -3:]]) / seconds[:, None]

    of_vanilla = parts(vanilla_calls, vanilla_s)
    prior = SCALE_WEIGHT * np.sqrt(len(measured))
    rows = np.vstack([parts(calls, decode_s) - of_vanilla, of_vanilla, [prior, 0.0, 0.0, 0.0]])
    wanted = np.concatenate([np.zeros(len(measured)), np.ones(len(measured)), [prior]])
    weights = np.ones(len(wanted))
    found, _ = nnls(rows, wanted)
    for _ in range(FIT_ROUNDS):
        errors = np.abs(rows @ found - wanted)[:-1]
        weights[:-1] = np.minimum(1.0, np.sqrt(max(TINY, np.median(errors)) / np.maximum(errors, TINY)))
        found, _ = nnls(rows * weights[:, None], wanted * weights)
    scale, *rest = map(float, found)
    seconds = scale * isolated
    seconds[-3:] += rest
    speedups = (vanilla_calls @ seconds) / (calls @ seconds)
    error = np.median(np.abs(speedups * decode_s / vanilla_s - 1.0))
    return Costs(seconds, scale, *rest, error=float(error))


def break_even(
    seconds: NDArray[np.float64], num_layers: int, boundary: int, max_drafts: int, num_columns: int
) -> float:
    """The chance from which on a draft made at `boundary` can pay, when calls take `seconds` [4 W + 4].

    It costs the layers below, a test, and a row more in all others; if it holds a token of vanilla's is saved, which is the
    most that can be. The row is the cheapest there is, after `num_columns` columns.
    """
    width = len(seconds) // 4 - 1
    layers, tests, verifies, columns = (seconds[part * width : part * width + max_drafts + 1] for part in range(4))
    layers = layers + num_columns * columns
    row_of_layer, row_of_verify = (max(0.0, float(np.diff(by_rows).min())) for by_rows in (layers, verifies))
    below = boundary * layers[0] + tests[0] if boundary else 0.0
    draft_s = below + (num_layers - boundary) * row_of_layer + row_of_verify
    return float(draft_s / (num_layers * layers[0] + verifies[0]))
