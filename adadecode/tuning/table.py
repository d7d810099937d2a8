"""What `tune` prints, and the schema of the rows it stores."""

import pyarrow as pa
from rich import box
from rich.table import Table

from adadecode.report.cells import ABSENT, fraction_text, number_text
from adadecode.report.foreign import foreign_text
from adadecode.report.stats import Estimate
from adadecode.settings import sampling_text
from adadecode.tuning.result import TuneResult

MOST_ERROR = 0.1  # of a predicted speedup

TUNE_ROWS = pa.schema(
    [
        ("task", pa.string()),
        ("sample_id", pa.string()),
        ("variant", pa.string()),
        ("repeat", pa.int32()),
        ("order_idx", pa.int32()),
        ("prompt_len", pa.int32()),
        ("output_len", pa.int32()),
        ("ttft_s", pa.float64()),
        ("decode_s", pa.float64()),
        ("num_rounds", pa.int32()),
        ("layers_run", pa.int32()),
        ("num_drafted", pa.int32()),
        ("num_accepted", pa.int32()),
        ("is_exact", pa.bool_()),
    ]
)


def tune_table(result: TuneResult) -> Table:
    """Measured and predicted speed of each contender on the held-out prompts, beside the limits; `-` is not known."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{result.num_prompts.held_out} held-out prompts, decoding alone")
    for name in (
        "variant",
        "tokens/s",
        "speedup (95 % CI)",
        "predicted",
        "accept",
        "layers/token",
        "exact",
        "replayed",
    ):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in result.variants:
        table.add_row(
            row.variant,
            f"{row.tokens_per_s:.1f}",
            _with_interval(row.speedup),
            _times(row.predicted_speedup),
            number_text(row.acceptance_rate, ".1%"),
            f"{row.layers_per_token:.2f}",
            fraction_text(row.num_exact, row.num_checked),
            fraction_text(row.num_replayed_alike, row.num_replayed),
        )
    for name, speedup in result.oracle.by_name().items():
        table.add_row(name, ABSENT, ABSENT, _times(speedup), *[ABSENT] * 4)
    return table


def tune_lines(result: TuneResult) -> list[str]:
    """The policy and how sure its speed is."""
    predicted, oracle, tuned = result.predicted, result.oracle, result.tuned
    measured = tuned.speedup.value
    assert tuned.predicted_speedup is not None, tuned
    warnings = [text] if (text := foreign_text(result.made_from)) is not None else []
    if predicted.cross_validated <= 1.0:
        warnings.append("no policy over these heads is expected to beat vanilla here")
    if abs(tuned.predicted_speedup / measured - 1.0) > MOST_ERROR:
        warnings.append(
            f"prediction and measurement differ by more than {MOST_ERROR:.0%}: measure on a quieter machine"
        )
    for row in result.variants:
        if row.num_replayed is not None and row.num_replayed_alike is not None:
            num_differing = row.num_replayed - row.num_replayed_alike
            if num_differing:
                warnings.append(
                    f"{row.variant}: the replay differs from the engine on {num_differing} of {row.num_replayed} prompts; "
                    "predictions do not hold"
                )
    return [
        "policy: " + ", ".join(f"{name} {value}" for name, value in result.policy.items()),
        f"predicted {predicted.tuned_on:.2f}x on the prompts it was found on, {predicted.cross_validated:.2f}x "
        f"cross-validated; {tuned.predicted_speedup:.2f}x predicted and {measured:.2f}x measured on held-out prompts",
        f"of the perfect policy's speed: {measured / oracle.heads_alone:.0%} with heads alone, "
        f"{measured / oracle.with_ngrams:.0%} with n-grams",
        *([] if (drawn := sampling_text(result.settings)) is None else [f"outputs are drawn: {drawn}"]),
        *warnings,
    ]


def _with_interval(speedup: Estimate) -> str:
    interval = "no interval" if speedup.low is None else f"{speedup.low:.2f}-{speedup.high:.2f}"
    return f"{_times(speedup.value)} ({interval}, n={speedup.num_prompts})"


def _times(speedup: float | None) -> str:
    return ABSENT if speedup is None else f"{speedup:.2f}x"
