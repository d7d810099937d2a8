"""Each committed row against itself: lengths, sums, times, how it ended, what it may claim.

What `engine/tally.py` counts and `evaluation/rows.py` stores holds by construction, so a row in which it does not was
altered or written by something else. No model is needed, and no row alone can show that all of it was altered alike.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import METHODS, REFERENCE
from adadecode.report.checks import Rules
from adadecode.report.draft_checks import DRAFTING
from adadecode.report.findings import RTOL, Columns, Mask, Wrong, any_value, differs
from adadecode.report.parity import NEAR_TIE_MARGIN
from adadecode.settings import key_text

GAPS_RTOL = 1e-5  # of the sum of step_gaps_s, which are float32

TIMES = ("ttft_s", "decode_s", "e2e_s", "tpot_s")
MEASURED = (
    *("output_len", "output_token_ids", "output_text", "correct", *TIMES, "step_gaps_s", "num_rounds"),
    *DRAFTING,
    *("rejected", "layers_per_token", "parity", "logits_equal", "first_diff_idx", "logits_digest"),
)  # null in a row with an error
CLAIMED = ("parity", "logits_equal", "first_diff_idx", "vanilla_token_id", "method_token_id")
PARITIES = ("exact", "near_tie", "mismatch")


def impossible_times(samples: pa.Table) -> Mask:
    """Where an ok row has no end-to-end time that a clock can have shown: a positive, finite number."""
    e2e_s = samples["e2e_s"].cast(pa.float64()).to_numpy()
    is_ok = pc.fill_null(pc.equal(samples["status"], "ok"), False).to_numpy()
    return is_ok & ~_is_positive(e2e_s)


def without_impossible_times(samples: pa.Table) -> pa.Table:
    """`samples` with null for every time that is not a positive, finite number: none of them is averaged.

    `decode_s` may be 0, that of an output of one token.
    """
    for name in TIMES:
        times = samples[name].cast(pa.float64()).to_numpy()
        is_real = np.isfinite(times) & ((times > 0) | ((times == 0) & (name == "decode_s")))
        if not (is_real | np.isnan(times)).all() or pc.any(pc.is_nan(samples[name])).as_py():
            column = pa.array(times, samples.schema.field(name).type, mask=~is_real)
            samples = samples.set_column(samples.schema.get_field_index(name), samples.schema.field(name), column)
    return samples


def labels(columns: Columns) -> Iterator[Wrong]:
    """Status, method, errors and `lossy` against each other."""
    is_ok, is_error = columns.is_ok, columns.equal("status", "error")
    yield "status is neither ok nor error", ~is_ok & ~is_error
    yield "method is none that is known", ~columns.among("method", METHODS)
    yield "status is ok, but the row has an error", is_ok & (columns.has("error_type") | columns.has("error_message"))
    yield "status is error, but error_type is missing", is_error & ~columns.has("error_type")
    measured = np.any([columns.has(name) for name in MEASURED], axis=0)
    yield "status is error, but the row has measurements", is_error & measured
    lossy = columns.among("method", [name for name, method in METHODS.items() if method.is_lossy])
    yield "lossy is not what the method is", columns.has("lossy") & (columns.equal("lossy", True) != lossy)


def counts(columns: Columns) -> Iterator[Wrong]:
    """Counts against the ids and lists that are stored."""
    output_len = columns.numbers("output_len")
    yield "status is ok, but there is no output", columns.is_ok & ~(output_len > 0)
    yield "status is ok, but there is no prompt", columns.is_ok & ~(columns.numbers("prompt_len") > 0)
    for name, of in (("prompt_len", "prompt_token_ids"), ("output_len", "output_token_ids")):
        yield f"{name} is not the number of {of}", differs(columns.numbers(name), columns.lengths(of))
        ids, of_row = columns.values(of)
        yield f"{of} has negative ids", any_value(ids < 0, of_row, columns)
    has_depths = columns.has("draft_depths")
    yield "draft_depths are not one per output token", has_depths & differs(columns.lengths("draft_depths"), output_len)
    yield (
        "step_gaps_s are not one per round",
        columns.is_ok & differs(columns.lengths("step_gaps_s"), columns.numbers("num_rounds")),
    )


def times(columns: Columns) -> Iterator[Wrong]:
    """Times against the clock and each other."""
    is_ok, num_later = columns.is_ok, columns.numbers("output_len") - 1
    ttft_s, decode_s, e2e_s, tpot_s = (columns.numbers(name) for name in TIMES)
    has_later = num_later > 0
    yield "e2e_s is no positive, finite number", is_ok & ~_is_positive(e2e_s)
    yield "ttft_s is no positive, finite number", is_ok & ~_is_positive(ttft_s)
    yield "decode_s is no finite number from 0 on", is_ok & ~(np.isfinite(decode_s) & (decode_s >= 0))
    # transformers may draft before its first pass, which then gives the whole output at once
    in_rounds = is_ok & has_later & ~((columns.numbers("num_rounds") == 0) & (tpot_s == 0))
    yield "tpot_s is no positive, finite number", in_rounds & ~_is_positive(tpot_s)
    yield "tpot_s is there below two output tokens", is_ok & (num_later == 0) & columns.has("tpot_s")
    gaps, of_row = columns.values("step_gaps_s")
    yield (
        "step_gaps_s has values that are no finite numbers from 0 on",
        is_ok & any_value(~(np.isfinite(gaps) & (gaps >= 0)), of_row, columns),
    )
    real = is_ok & _is_positive(e2e_s) & np.isfinite(ttft_s) & np.isfinite(decode_s)
    yield "ttft_s is past e2e_s", real & (ttft_s > e2e_s * (1 + RTOL))
    yield "e2e_s is not ttft_s + decode_s", real & differs(e2e_s, ttft_s + decode_s, RTOL)
    sums = columns.sums("step_gaps_s")
    yield "decode_s is not the sum of step_gaps_s", real & np.isfinite(sums) & differs(decode_s, sums, GAPS_RTOL)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = decode_s / num_later
    yield "tpot_s is not decode_s / (output_len - 1)", real & has_later & differs(tpot_s, quotient, RTOL)


def endings(columns: Columns) -> Iterator[Wrong]:
    """How outputs ended: a token that ends one of them ends all."""
    is_ok = columns.is_ok
    is_eos, is_length = columns.equal("finish_reason", "eos"), columns.equal("finish_reason", "length")
    is_stop = columns.equal("finish_reason", "stop")
    yield "finish_reason is none of eos, length and stop", is_ok & ~is_eos & ~is_length & ~is_stop
    yield (
        "status is error, but finish_reason is not",
        columns.equal("status", "error") & ~columns.equal("finish_reason", "error"),
    )
    ids, of_token = columns.values("output_token_ids")
    is_last = np.append(np.diff(of_token) != 0, True)[: len(ids)]
    last = np.full(columns.table.num_rows, np.nan)
    last[of_token[is_last]] = ids[is_last]
    eos_ids = np.unique(last[is_ok & is_eos & ~np.isnan(last)])
    yield (
        "finish_reason is length, but the output ends in a token that ends others",
        is_ok & is_length & np.isin(last, eos_ids),
    )
    inside = any_value(np.isin(ids, eos_ids) & ~is_last, of_token, columns)
    yield "the output goes on after a token that ends others", is_ok & inside


def limits(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """Lengths of outputs against `max_new_tokens` and the context."""
    if rules.max_new_tokens is None:
        return
    is_ok, is_length = columns.is_ok, columns.equal("finish_reason", "length")
    output_len, prompt_len = columns.numbers("output_len"), columns.numbers("prompt_len")
    yield "the output is longer than max_new_tokens", is_ok & (output_len > rules.max_new_tokens)
    total = output_len + prompt_len
    is_cut = is_ok & is_length & (output_len < rules.max_new_tokens)
    if is_cut.any():  # by the end of the context then, which no row is past, and which is the same for all
        yield (
            "finish_reason is length, but neither max_new_tokens nor the context is reached",
            is_cut & (total < np.nanmax(total[is_ok])),
        )


def claims(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """What a row says of its parity with vanilla, by its form: classes, digests, margins."""
    is_vanilla = columns.equal("method", REFERENCE)
    claimed = np.any([columns.has(name) for name in CLAIMED], axis=0)
    yield "vanilla claims parity with itself", is_vanilla & claimed
    yield from _margins(columns, rules)
    yield "parity is none of exact, near_tie and mismatch", columns.has("parity") & ~columns.among("parity", PARITIES)
    has_digest = columns.has("logits_digest")
    is_digest = pc.match_substring_regex(columns.table["logits_digest"], "^[0-9a-f]{32}$")
    yield "logits_digest is not 32 hexadecimal digits", ~pc.fill_null(is_digest, True).to_numpy()
    verified = columns.among("method", [name for name, method in METHODS.items() if method.verified])
    if rules.check_logits is not None:
        expected = columns.is_ok & verified if rules.check_logits else np.zeros_like(verified)
        yield "logits_digest is missing, but the logits were to be compared", expected & ~has_digest
        yield "logits_digest is there, but no logits were to be compared", columns.is_ok & has_digest & ~expected
    tolerance = NEAR_TIE_MARGIN.get(rules.dtype or "")
    if tolerance is not None:
        margin = columns.numbers("vanilla_margin")
        yield (
            f"parity is near_tie, but vanilla_margin is beyond {tolerance:g}",
            columns.equal("parity", "near_tie") & ~(margin <= tolerance),
        )
        two = columns.has("vanilla_token_id") & columns.has("method_token_id")
        yield (
            f"parity is mismatch, but vanilla_margin is within {tolerance:g}",
            columns.equal("parity", "mismatch") & two & (margin <= tolerance),
        )


def keys(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """The key that drew each output is that of the run's seed and of the row's sample, repeat and turn."""
    if (sampling := rules.sampling) is None:
        return
    names = ("task", "sample_id", "repeat", "turn")
    rows = zip(*(columns.table[name].to_pylist() for name in names), strict=True)
    expected = pa.array([key_text(sampling.sampling_key(*row)) for row in rows], pa.string())
    yield (
        "sampling_key is missing, but tokens were drawn",
        expected.is_valid().to_numpy(False) & ~columns.has("sampling_key"),
    )
    yield (
        "sampling_key is there, but decoding is greedy",
        ~expected.is_valid().to_numpy(False) & columns.has("sampling_key"),
    )
    other = pc.not_equal(columns.table["sampling_key"], expected)
    yield "sampling_key is not that of the seed and the row", pc.fill_null(other, False).to_numpy()


def _margins(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """Margins are those of the first difference, where the output has a token there whose logits were recorded."""
    for name, token, recorded in (
        ("vanilla_margin", "vanilla_token_id", columns.has("vanilla_token_id") & (rules.check_logits is True)),
        ("method_margin", "method_token_id", columns.has("logits_digest")),
    ):
        margin, has = columns.numbers(name), columns.has(name)
        yield f"{name} is there, but first_diff_idx is not", has & ~columns.has("first_diff_idx")
        yield f"{name} is no finite number from 0 on", has & ~(np.isfinite(margin) & (margin >= 0))
        yield f"{name} is missing", recorded & columns.has(token) & ~has


def _is_positive(numbers: NDArray) -> Mask:
    return np.isfinite(numbers) & (numbers > 0)
