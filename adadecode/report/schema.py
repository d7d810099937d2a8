"""The Parquet tables: one explicit, versioned Arrow schema each. Null means not measured, never 0 or -1."""

import pyarrow as pa
import pyarrow.compute as pc

# 2: lossy and consistency. 3: a baseline for each speedup, num_engines, and intervals as stats.py draws them. Older tables
# are read, with null in what they lack. 4: turns and categories; a row of before is of turn 0, a plan's of one turn.
# 5: which drafts were rejected. 6: the key of the noise that drew an output.
SCHEMA_VERSION = 6

TOKEN_IDS = pa.list_(pa.int32())
REJECTED = pa.list_(pa.struct([(name, pa.int32()) for name in ("round_idx", "position", "token_id", "exit")]))

SAMPLES = pa.schema(
    [
        # which row: the key is (task, sample_id, turn, method, repeat)
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("turn", pa.int32()),  # of a conversation, from 0; in memory never null
        pa.field("category", pa.string()),  # the sample's kind within its task; null where it has none
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | error
        # what went in and came out
        pa.field("prompt_len", pa.int32()),
        pa.field("output_len", pa.int32()),
        pa.field("prompt_token_ids", TOKEN_IDS),
        pa.field("output_token_ids", TOKEN_IDS),
        pa.field("output_text", pa.string()),
        pa.field("finish_reason", pa.string()),  # eos | length | stop: by a stop string | error
        pa.field("reference", pa.string()),
        pa.field("correct", pa.bool_()),  # null where the task has no scorer
        pa.field("sampling_key", pa.string()),  # of the noise that drew it, 16 hexadecimal digits; null where greedy
        # what it cost
        pa.field("ttft_s", pa.float64()),
        pa.field("decode_s", pa.float64()),
        pa.field("e2e_s", pa.float64()),
        pa.field("tpot_s", pa.float64()),
        pa.field("step_gaps_s", pa.list_(pa.float32())),
        pa.field("num_rounds", pa.int32()),
        pa.field("num_drafted", pa.int32()),
        pa.field("num_accepted", pa.int32()),
        pa.field("exits", TOKEN_IDS),
        pa.field("drafted_per_exit", TOKEN_IDS),
        pa.field("accepted_per_exit", TOKEN_IDS),
        pa.field("draft_depths", TOKEN_IDS),
        pa.field("rejected", REJECTED),  # null before version 5, and where nobody saw them
        pa.field("layers_per_token", pa.float64()),
        # parity with the method `vanilla` of the same sample and repeat; all null for `vanilla` itself
        pa.field("parity", pa.string()),  # exact | near_tie | mismatch
        pa.field("logits_equal", pa.bool_()),  # bits of all accepted logits; null when not recorded
        pa.field("first_diff_idx", pa.int32()),  # output position; null when equal
        pa.field("vanilla_token_id", pa.int32()),  # the two tokens there; null past the end of an output
        pa.field("method_token_id", pa.int32()),
        pa.field("vanilla_margin", pa.float64()),  # top-1 minus top-2 logit there
        pa.field("method_margin", pa.float64()),
        pa.field("logits_digest", pa.string()),  # BLAKE2b-128 of the accepted logits' bytes
        pa.field("lossy", pa.bool_()),  # whether the method keeps what was not verified; null in version 1
        # how it was run
        pa.field("width", pa.int32()),
        pa.field("order_idx", pa.int32()),  # 0: ran first of the sample's methods
        pa.field("worker_id", pa.string(), nullable=False),
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("started_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)

PLAN = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("num_turns", pa.int32()),  # in memory never null
    ]
)

VERIFY = pa.schema(
    [
        pa.field(name, SAMPLES.field(name).type)
        for name in (
            "task",
            "sample_id",
            "method",
            "repeat",
            "turn",
            "category",
            "parity",
            "logits_equal",
            "first_diff_idx",
            "vanilla_token_id",
            "method_token_id",
            "vanilla_margin",
            "method_margin",
        )
    ]
    + [pa.field("consistency", pa.float64())]  # share of output positions with vanilla's token, over the longer output
)

SUMMARY = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("category", pa.string()),  # null: of the whole task
        pa.field("method", pa.string(), nullable=False),
        pa.field("n", pa.int32(), nullable=False),  # samples measured, all repeats
        pa.field("num_errors", pa.int32(), nullable=False),
        pa.field("num_output_tokens", pa.int64(), nullable=False),
        pa.field("tokens_per_s", pa.float64()),  # sum of tokens / sum of e2e_s
        pa.field("decode_tokens_per_s", pa.float64()),  # sum of later tokens / sum of decode_s
        pa.field("ttft_p50_s", pa.float64()),
        pa.field("ttft_p90_s", pa.float64()),
        pa.field("num_tpot", pa.int32(), nullable=False),  # samples of two or more tokens: those that have a TPOT
        pa.field("tpot_mean_s", pa.float64()),
        pa.field("tpot_p50_s", pa.float64()),
        pa.field("tpot_p90_s", pa.float64()),
        pa.field("e2e_p50_s", pa.float64()),
        pa.field("e2e_p90_s", pa.float64()),
        pa.field("num_drafted", pa.int64()),
        pa.field("num_accepted", pa.int64()),
        pa.field("acceptance_rate", pa.float64()),  # null when nothing was drafted
        pa.field("tokens_per_round", pa.float64()),
        pa.field("layers_per_token", pa.float64()),  # mean over tokens
        pa.field("baseline", pa.string()),  # the vanilla of the least mean log time: speedup_geomean is over it
        pa.field("num_prompts", pa.int32()),  # prompts behind speedup_geomean and its interval
        pa.field("speedup_geomean", pa.float64()),  # geometric mean of per-prompt e2e ratios
        pa.field("speedup_geomean_low", pa.float64()),  # 95 % interval over prompts, see report/stats.py
        pa.field("speedup_geomean_high", pa.float64()),
        pa.field("baseline_total", pa.string()),  # the vanilla of the least total time: speedup_total is over it
        pa.field("speedup_total", pa.float64()),  # ratio of summed e2e times
        pa.field("num_parity_exact", pa.int32()),  # null for `vanilla`
        pa.field("num_parity_checked", pa.int32()),
        pa.field("num_logits_equal", pa.int32()),
        pa.field("num_logits_checked", pa.int32()),
        pa.field("num_correct", pa.int32()),  # null where the task has no scorer
        pa.field("num_scored", pa.int32()),
        pa.field("consistency", pa.float64()),  # mean over samples of verify's; null for `vanilla`
        pa.field("lossy", pa.bool_(), nullable=False),
        pa.field("num_engines", pa.int32()),  # that computed the task's rows: past 1 speeds are averages over them
    ]
)

SWEEP = pa.schema([pa.field("cell", pa.string(), nullable=False), *SUMMARY])

SCORES = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("task", "sample_id")),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("repeat", pa.int32()),  # null for a metric over all repeats of the turn
        pa.field("metric", pa.string(), nullable=False),
        pa.field("score", pa.float64()),  # null where the scorer failed on the row
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("scorer_version", pa.int32(), nullable=False),
        pa.field("reason", pa.string()),  # why there is no score, or why a program failed
        pa.field("output_hash", pa.string()),  # of the output and the reference that were scored; null over repeats
    ]
)
# What null stands for in a column that older tables lack.
BEFORE = {"turn": 0, "num_turns": 1}


def filled(table: pa.Table) -> pa.Table:
    """`table` with the values of BEFORE in the columns that older tables lack, which have no values in it.

    Raises ValueError where only some are missing.
    """
    for name, value in BEFORE.items():
        if name in table.schema.names and table[name].null_count:
            if table[name].null_count < table.num_rows:
                raise ValueError(f"column {name} has rows without a value")
            idx = table.schema.get_field_index(name)
            table = table.set_column(
                idx, table.schema.field(idx), pc.fill_null(table[name], pa.scalar(value, pa.int32()))
            )
    return table


LOST_BY = "driver"  # worker_id in the rows of a sample that ended every worker which tried it
