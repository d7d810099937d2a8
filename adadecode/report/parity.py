"""Token parity with vanilla: how a divergence is classed, and the check that recomputes every stored claim.

A first divergence is a *near-tie* when vanilla itself hardly preferred its token: its top-1 minus top-2 logit margin at
that position is at most the tolerance of the dtype, about the size of the rounding error of one logit. Where tokens are
drawn it is the margin of what the draw compares, logits with T times their noise. Anything else is a *mismatch*. Neither is
`exact`; for a method under the parity contract both are failures.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.errors import RunFolderError
from adadecode.methods import REFERENCE, drawn_apart, names_that_owe
from adadecode.report.schema import VERIFY

NEAR_TIE_MARGIN: dict[str, float] = {"float32": 1e-3, "float16": 0.0625, "bfloat16": 0.5}

KEY = ("task", "sample_id", "turn", "method", "repeat")

CLAIMS = [name for name in VERIFY.names if name != "consistency"]  # what a stored row says of itself


def sample_name(row: Mapping[str, Any]) -> str:
    """`TASK/SAMPLE`, and the turn of a row that is not of the first."""
    return f"{row['task']}/{row['sample_id']}" + (f" turn {row['turn']}" if row["turn"] else "")


def row_name(row: Mapping[str, Any]) -> str:
    """`TASK/SAMPLE METHOD repeat N`, as every line names a row of SAMPLES or VERIFY."""
    return f"{sample_name(row)} {row['method']} repeat {row['repeat']}"


def first_difference(a: Sequence[int] | NDArray, b: Sequence[int] | NDArray) -> int | None:
    """The first position at which two outputs differ, None when they are equal.

    Where one is a prefix of the other that is the shorter one's length.
    """
    common_len = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:common_len]) != np.asarray(b[:common_len]))
    if different.size:
        return int(different[0])
    return None if len(a) == len(b) else common_len


def consistency_of(a: NDArray, b: NDArray) -> float:
    """The share of positions at which two outputs hold the same token, of those of the longer one."""
    longer_len, common_len = max(len(a), len(b)), min(len(a), len(b))
    return float(np.count_nonzero(a[:common_len] == b[:common_len]) / longer_len) if longer_len else 1.0


def classify(first_diff_idx: int | None, margin: float | None, dtype: str) -> str:
    """`exact`, `near_tie` or `mismatch`, from the first divergence and vanilla's top-1 minus top-2 `margin` there.

    The tolerance is `NEAR_TIE_MARGIN[dtype]`: float32 1e-3, float16 0.0625, bfloat16 0.5. A margin that is None or NaN
    excuses nothing.
    """
    if first_diff_idx is None:
        return "exact"
    return "near_tie" if margin is not None and margin <= NEAR_TIE_MARGIN[dtype] else "mismatch"


def pair_codes(samples: pa.Table) -> NDArray[np.int64]:
    """One integer per row, [rows], equal exactly where (task, sample_id, turn, repeat) is equal; dense from 0."""
    return np.unique(_combined_codes(samples, ("task", "sample_id", "turn", "repeat")), return_inverse=True)[1]


def recompute_parity(samples: pa.Table) -> pa.Table:
    """A VERIFY table with one row per ok row of every other method than vanilla, judged from the stored ids alone.

    Equal means equal ids, equal lengths and an equal finish reason; `logits_equal` compares the digests and is null
    where one is missing. Margins need logits, so they come from the stored row, as does `near_tie`, provided the row
    names the divergence the ids show. A stored claim that the ids or digests contradict comes out as `mismatch`. Parity
    is null where vanilla's row is missing or an error, and where transformers drew the tokens. Raises RunFolderError
    when a row is stored twice.
    """
    reject_duplicates(samples)
    rows, partners = _pair_with_vanilla(samples)
    vanilla = samples.select(["output_token_ids", "finish_reason", "logits_digest"]).take(partners)
    stored = samples.select([*CLAIMS, *vanilla.column_names]).take(rows)
    finish_equal = pc.equal(stored["finish_reason"], vanilla["finish_reason"])
    logits_equal = pc.equal(stored["logits_digest"], vanilla["logits_digest"])
    plain = _plainly_exact(stored, vanilla, finish_equal, logits_equal)
    exact = _exact_rows(stored, logits_equal).filter(pa.array(plain))
    others = pa.array(np.flatnonzero(~plain))
    judged = map(
        _judge,
        stored.select(CLAIMS).take(others).to_pylist(),
        _id_arrays(stored.select(["output_token_ids"]).take(others)),
        _id_arrays(vanilla.select(["output_token_ids"]).take(others)),
        finish_equal.take(others).to_pylist(),
        logits_equal.take(others).to_pylist(),
    )
    told = pa.concat_tables([exact, pa.Table.from_pylist(list(judged), schema=VERIFY)])
    order = np.argsort(np.concatenate([np.flatnonzero(plain), np.flatnonzero(~plain)]))
    return told.take(pa.array(order)).combine_chunks()


def _plainly_exact(
    stored: pa.Table, vanilla: pa.Table, finish_equal: pa.ChunkedArray, logits_equal: pa.ChunkedArray
) -> NDArray[np.bool_]:
    """The pairs of equal outputs that claim nothing else: nearly all, and judged together."""
    pairs = zip(_id_arrays(stored), _id_arrays(vanilla), strict=True)
    same = [a is not None and b is not None and len(a) == len(b) and a.tobytes() == b.tobytes() for a, b in pairs]
    claims = [
        finish_equal,
        pc.equal(pc.fill_null(stored["parity"], "exact"), "exact"),
        pc.or_kleene(pc.equal(stored["logits_equal"], logits_equal), pc.is_null(logits_equal)),
    ]
    return np.array(same, bool) & np.all([pc.fill_null(claim, False).to_numpy() for claim in claims], axis=0)


def _exact_rows(stored: pa.Table, logits_equal: pa.ChunkedArray) -> pa.Table:
    """A VERIFY table of `stored` rows that equal vanilla's."""
    known = {name: stored[name] for name in (*KEY, "category")}
    known |= {"logits_equal": logits_equal, "parity": pa.array(["exact"] * stored.num_rows, pa.string())}
    known |= {"consistency": pa.array(np.ones(stored.num_rows))}
    columns = [known.get(field.name, pa.nulls(stored.num_rows, field.type)) for field in VERIFY]
    return pa.table(columns, VERIFY)


def stored_disagreements(samples: pa.Table, verify: pa.Table) -> list[str]:
    """One line per row of `samples` whose parity claims the recomputed `verify` does not confirm; empty if none."""
    claimed = ("parity", "logits_equal", "first_diff_idx", "vanilla_token_id", "method_token_id")
    stored = samples.filter(pc.field("parity").is_valid()).select([*KEY, *claimed])
    joined = stored.join(verify.select([*KEY, *claimed]), [*KEY], join_type="left outer", right_suffix="_now")
    lines = []
    for row in joined.sort_by([(name, "ascending") for name in KEY]).to_pylist():
        wrong = [
            f"{name} is stored as {_shown(row[name])} and recomputed as {_shown(row[name + '_now'])}"
            for name in claimed
            if row[name] != row[name + "_now"] and not (name == "logits_equal" and row[name] is None)
        ]
        if wrong:
            lines.append(f"{row_name(row)}: {'; '.join(wrong)}")
    return lines


def broken_contract(verify: pa.Table) -> pa.Table:
    """The rows of VERIFY in which a method under the parity contract is not vanilla's equal."""
    of_contract = verify.filter(pc.field("method").isin(names_that_owe("exact")))
    differs = pc.fill_null(pc.not_equal(of_contract["parity"], "exact"), False)
    return of_contract.filter(pc.or_(differs, pc.fill_null(pc.invert(of_contract["logits_equal"]), False)))


def num_checked(verify: pa.Table) -> int:
    """How many outputs of methods under the parity contract had one of vanilla to be compared with."""
    compared = pc.field("method").isin(names_that_owe("exact")) & pc.field("parity").is_valid()
    return verify.filter(compared).num_rows


def _judge(
    claim: dict, method_ids: NDArray | None, vanilla_ids: NDArray | None, finish_equal: bool, logits_equal: bool | None
) -> dict:
    """The VERIFY row for one pair, from the stored row's `claim` and what ids, finish reasons and digests say."""
    row = dict.fromkeys(VERIFY.names) | {name: claim[name] for name in (*KEY, "category")}
    if method_ids is None or vanilla_ids is None:
        return row
    row["logits_equal"] = logits_equal
    row["consistency"] = consistency_of(method_ids, vanilla_ids)
    idx = row["first_diff_idx"] = first_difference(method_ids, vanilla_ids)
    if idx is not None:
        row["vanilla_token_id"], row["method_token_id"] = _token_at(vanilla_ids, idx), _token_at(method_ids, idx)
        if idx == claim["first_diff_idx"]:  # margins of another position say nothing about this one
            row |= {name: claim[name] for name in ("vanilla_margin", "method_margin")}
    same_output = idx is None and finish_equal
    row["parity"] = "mismatch" if _contradicts(claim, same_output, logits_equal) else _parity(claim, same_output, row)
    return row


def _contradicts(claim: dict, same_output: bool, logits_equal: bool | None) -> bool:
    """Whether the stored row claims equality that is not there, or a difference that is not there."""
    claimed_same = None if claim["parity"] is None else claim["parity"] == "exact"
    return claimed_same not in (None, same_output) or (
        logits_equal is not None and claim["logits_equal"] not in (None, logits_equal)
    )


def _parity(claim: dict, same_output: bool, row: dict) -> str:
    if same_output:
        return "exact"
    margin = row["vanilla_margin"]
    # The dtype is not in the table; a margin beyond every tolerance is no near-tie in any.
    excusable = margin is not None and margin <= max(NEAR_TIE_MARGIN.values())
    return "near_tie" if claim["parity"] == "near_tie" and excusable else "mismatch"


def _pair_with_vanilla(samples: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Row positions of every ok row of another method, and of its ok vanilla row: null where none is to compare with."""
    is_ok = pc.equal(samples["status"], "ok").to_numpy()
    is_vanilla = pc.equal(samples["method"], REFERENCE).to_numpy()
    codes = pair_codes(samples)
    vanilla_rows = np.flatnonzero(is_ok & is_vanilla)
    vanilla_of_pair = np.full(codes.max(initial=-1) + 1, -1)
    vanilla_of_pair[codes[vanilla_rows]] = vanilla_rows
    rows = np.flatnonzero(is_ok & ~is_vanilla)
    is_apart = (
        pc.is_in(samples["method"], pa.array(drawn_apart())).to_numpy() & samples["sampling_key"].is_valid().to_numpy()
    )
    partners = np.where(is_apart[rows], -1, vanilla_of_pair[codes[rows]])
    return pa.array(rows, pa.int64()), pa.array(partners, pa.int64(), mask=partners < 0)


def _id_arrays(samples: pa.Table) -> Iterator[NDArray | None]:
    """Each row's output token ids as a view into the column, None where null: no list of Python ints is ever made."""
    for chunk in samples["output_token_ids"].chunks:
        ids, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        for start, stop, valid in zip(offsets[:-1], offsets[1:], chunk.is_valid().to_pylist(), strict=True):
            yield ids[start:stop] if valid else None


def once_each(rows: pa.Table) -> pa.Table:
    """`rows`, which have the columns of KEY, without those whose key was there before."""
    first = np.unique(_combined_codes(rows, KEY), return_index=True)[1]
    return rows if len(first) == rows.num_rows else rows.take(pa.array(np.sort(first)))


def reject_duplicates(samples: pa.Table) -> None:
    """Raises RunFolderError when two rows have one key."""
    codes, counts = np.unique(_combined_codes(samples, KEY), return_counts=True)
    num_extra = int(counts.sum()) - len(codes)
    if num_extra:
        raise RunFolderError(
            f"{num_extra} of {samples.num_rows} rows repeat another row's (task, sample_id, turn, method, repeat): "
            "read only the files that commits/ names"
        )


def _combined_codes(samples: pa.Table, names: Sequence[str]) -> NDArray[np.int64]:
    combined = np.zeros(samples.num_rows, dtype=np.int64)
    for name in names:
        encoded = pc.dictionary_encode(samples[name].combine_chunks())
        combined = combined * len(encoded.dictionary) + encoded.indices.to_numpy()
    return combined


def _token_at(ids: NDArray, idx: int) -> int | None:
    return int(ids[idx]) if idx < len(ids) else None


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
