"""The committed rows of one sample against each other: one prompt, one answer, one turn per method, one text per output."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adadecode.methods import METHODS, REFERENCE, drawn_apart
from adadecode.report.findings import Columns, Mask, Wrong, first_of_group

CLOCK_US, CLOCK_RTOL = 1000.0, 0.01  # by which two clocks of a machine may differ, of wall time and of durations


def workers(columns: Columns) -> Iterator[Wrong]:
    """Every method of a sample and repeat ran where vanilla did, so that their times may be compared."""
    pairs, names = columns.codes("task", "sample_id", "turn", "repeat"), columns.codes("worker_id")
    unlike = _unlike(names, pairs, columns.is_ok, columns.equal("method", REFERENCE))
    yield "worker_id is not that of vanilla's row, over which it is timed", unlike


def prompts(columns: Columns) -> Iterator[Wrong]:
    """All rows of a sample have one prompt, reference and category; where answers are drawn, later turns one per repeat."""
    samples, is_vanilla = columns.codes("task", "sample_id", "turn"), columns.equal("method", REFERENCE)
    given, references = columns.list_codes("prompt_token_ids"), columns.codes("reference")
    everywhere = np.ones(len(samples), bool)
    asked = columns.codes("task", "sample_id", "turn", "sampling_key")
    asked = np.where(columns.numbers("turn") > 0, asked + samples.max(initial=0) + 1, samples)
    yield "prompt_token_ids are not those of the sample's other rows", _unlike(given, asked, given >= 0, is_vanilla)
    yield "reference is not that of the sample's other rows", _unlike(references, samples, everywhere, is_vanilla)
    of_turns, categories = columns.codes("task", "sample_id"), columns.codes("category")
    yield "category is not that of the sample's other rows", _unlike(categories, of_turns, everywhere, is_vanilla)


def outputs(columns: Columns) -> Iterator[Wrong]:
    """One output has one text, and vanilla one output in all repeats that one key draws, all of them where it is greedy."""
    samples, is_vanilla = columns.codes("task", "sample_id", "turn"), columns.equal("method", REFERENCE)
    given = np.where(columns.is_ok, columns.list_codes("output_token_ids"), -1)
    texts, same_output = columns.codes("output_text"), _joint(samples, given)
    yield (
        "output_text is not that of the same output in another row",
        _unlike(texts, same_output, given >= 0, is_vanilla),
    )
    is_there = is_vanilla & (given >= 0)
    alike = columns.codes("task", "sample_id", "turn", "sampling_key")
    yield "vanilla's output is not that of its other repeats", _unlike(given, alike, is_there, is_vanilla)
    digests, has_digest = columns.codes("logits_digest"), columns.has("logits_digest")
    yield (
        "vanilla's logits_digest is not that of its other repeats",
        _unlike(digests, alike, is_there & has_digest, is_vanilla),
    )
    # the tokens are those of the greatest logits, by our own rule for ties, or drawn from them by one noise
    ours = columns.among("method", [name for name, method in METHODS.items() if method.by == "engine"])
    yield (
        "logits_digest is that of other ids in another row",
        _unlike(given, columns.codes("logits_digest", "sampling_key"), ours & (given >= 0) & has_digest, is_vanilla),
    )


def turns(columns: Columns) -> Iterator[Wrong]:
    """Every method of a sample and repeat has a place of its own among the turns."""
    pairs, place = columns.codes("task", "sample_id", "turn", "repeat"), columns.numbers("order_idx")
    in_order = np.lexsort((place, pairs))
    taken = np.zeros(len(place), bool)
    taken[in_order[1:]] = (np.diff(pairs[in_order]) == 0) & ~(np.diff(place[in_order]) > 0)
    yield "order_idx is missing or that of another method", taken | ~(place >= 0)


def owed(columns: Columns) -> Iterator[Wrong]:
    """What must be claimed of a row beside an ok one of vanilla, and must not without."""
    pairs = columns.codes("task", "sample_id", "turn", "repeat")
    is_vanilla = columns.equal("method", REFERENCE)
    vanilla = first_of_group(pairs, columns.is_ok & is_vanilla)
    apart = columns.has("sampling_key") & columns.among("method", drawn_apart())
    compared = columns.is_ok & ~is_vanilla & ~apart & (vanilla >= 0)
    yield "parity is claimed, but transformers draws by noise of its own", columns.has("parity") & apart
    yield "parity is missing, but there is an output of vanilla", compared & ~columns.has("parity")
    yield "parity is claimed, but there is no output of vanilla", columns.has("parity") & (vanilla < 0)
    has_digest = columns.has("logits_digest")
    both = compared & has_digest & has_digest[vanilla]
    yield "logits_equal is missing, but there are two digests", both & ~columns.has("logits_equal")
    yield "logits_equal is claimed, but there are no two digests", columns.has("logits_equal") & ~both
    margins, places = (
        columns.codes("vanilla_margin"),
        columns.codes("task", "sample_id", "turn", "repeat", "first_diff_idx"),
    )
    yield (
        "vanilla_margin is not that of another method at the same place",
        _unlike(margins, places, columns.has("vanilla_margin"), is_vanilla),
    )


def clock(columns: Columns) -> Iterator[Wrong]:
    """A worker decodes one row after the other, in their order: none begins before the one before it has ended.

    One such row of a worker is let pass: a clock may have been set back once.
    """
    started_us = columns.table["started_at"].cast(pa.int64()).to_numpy()
    took_us = np.nan_to_num(columns.numbers("e2e_s"), posinf=0.0) * 1e6
    makers, pairs = columns.codes("worker_id", "shard"), columns.codes("task", "sample_id", "turn", "repeat")
    in_time = np.lexsort((columns.numbers("order_idx"), started_us, makers))
    before, after = in_time[:-1], in_time[1:]
    too_long = took_us[before] - (started_us[after] - started_us[before])
    wrong = too_long > CLOCK_US + CLOCK_RTOL * took_us[before]
    wrong |= (pairs[before] == pairs[after]) & (
        columns.numbers("order_idx")[before] > columns.numbers("order_idx")[after]
    )
    found = np.zeros(columns.table.num_rows, bool)
    found[after[wrong & (makers[before] == makers[after])]] = True
    workers = columns.codes("worker_id")
    yield (
        "started_at is before the worker's row before it had ended, or in another order than the methods'",
        found & (np.bincount(workers[found], minlength=workers.max(initial=-1) + 1)[workers] > 1),
    )


def _joint(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """One integer per row, equal exactly where both are equal; dense from 0."""
    return np.unique(a * (b.max(initial=0) + 2) + b, return_inverse=True)[1]


def _unlike(codes: NDArray[np.int64], groups: NDArray[np.int64], is_there: Mask, is_vanilla: Mask) -> Mask:
    """The rows that have another code than the first row of vanilla in their group, else than the first, if there."""
    of_vanilla = first_of_group(groups, is_there & is_vanilla)
    first = np.where(of_vanilla >= 0, of_vanilla, first_of_group(groups, is_there))
    return is_there & (codes != codes[first])
