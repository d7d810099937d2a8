"""What a tuning found, as values that tune.json and tune.parquet are dumped from; None is what is not known.

Field names are the keys and columns on disk, where a contender is a `variant`. Speedups are of decoding alone, over the
faster vanilla.
"""

from dataclasses import asdict, dataclass
from typing import Any

from adadecode.errors import EXIT_FAILED, EXIT_MISMATCH, EXIT_OK
from adadecode.methods import METHODS
from adadecode.model.machine_kind import MachineKind
from adadecode.report.stats import Estimate
from adadecode.tuning.costs import Costs

TUNED = "tuned"  # the contender that the search found


@dataclass(frozen=True)
class TuneRow:
    """One measured generation of a contender, the `order_idx`-th of its prompt and repeat; `is_exact` as vanilla's."""

    task: str
    sample_id: str
    variant: str
    repeat: int
    order_idx: int
    prompt_len: int
    output_len: int
    ttft_s: float
    decode_s: float
    num_rounds: int
    layers_run: int
    num_drafted: int
    num_accepted: int
    is_exact: bool


@dataclass(frozen=True)
class ContenderResult:
    """One contender on the held-out prompts: `speedup` is the geometric mean over prompts, `speedup_total` of sums.

    Each is over the vanilla that is faster by it.
    Of its `num_checked` outputs `num_exact` are vanilla's; of `num_replayed` prompts the replay made the engine's calls on
    `num_replayed_alike`. Those and the prediction are None where its heads were not traced.
    """

    variant: str
    tokens_per_s: float
    speedup: Estimate
    speedup_total: float
    predicted_speedup: float | None
    acceptance_rate: float | None
    layers_per_token: float
    num_exact: int
    num_checked: int
    num_replayed_alike: int | None
    num_replayed: int | None

    @property
    def may_differ(self) -> bool:
        """Whether its output is compared with vanilla's and reported, and owes it nothing."""
        return self.variant in METHODS and METHODS[self.variant].owes == "reported"


@dataclass(frozen=True)
class NumPrompts:
    """Prompts with something to decode after the first token."""

    tuned_on: int
    held_out: int


@dataclass(frozen=True)
class PredictedSpeedup:
    """Of the tuned policy on the prompts it was found on, and of policies on the folds they were not found on."""

    tuned_on: float
    cross_validated: float


@dataclass(frozen=True)
class Oracle:
    """Speedups of the perfect policy over these heads, with heads alone and with n-grams too."""

    heads_alone: float
    with_ngrams: float

    def by_name(self) -> dict[str, float]:
        """Both under the names that files and tables give them."""
        return {"oracle": self.heads_alone, "oracle with n-grams": self.with_ngrams}


@dataclass(frozen=True)
class TuneMachine:
    """Where it was measured."""

    device: str
    threads: int
    kind: MachineKind
    attention: str | None  # who computes it in decode steps; None where that is torch's choice
    float32_precision: str
    reduced_precision_sums: bool


@dataclass(frozen=True)
class TuneResult:
    """All that `tune` found. `policy` is what a policy file holds, `made_from` what the traces depend on."""

    settings: dict[str, Any]
    made_from: dict[str, Any]
    num_prompts: NumPrompts
    policy: dict[str, Any]
    predicted: PredictedSpeedup
    oracle: Oracle
    variants: tuple[ContenderResult, ...]
    costs: Costs
    machine: TuneMachine
    provenance: dict[str, Any]

    @property
    def tuned(self) -> ContenderResult:
        """The policy that was found."""
        return next(contender for contender in self.variants if contender.variant == TUNED)

    @property
    def exit_code(self) -> int:
        """3 when an output differs from vanilla's (at width 1 it may), 1 when a replay differs from the engine."""
        if any(row.num_exact != row.num_checked for row in self.variants if not row.may_differ):
            return EXIT_MISMATCH
        return EXIT_FAILED if any(row.num_replayed_alike != row.num_replayed for row in self.variants) else EXIT_OK

    def to_json(self) -> dict[str, Any]:
        """The object that tune.json holds."""
        costs = asdict(self.costs) | {"seconds": self.costs.seconds.tolist()}
        machine = asdict(self.machine) | {"kind": self.machine.kind._asdict()}
        return asdict(self) | {"oracle": self.oracle.by_name(), "costs": costs, "machine": machine}
