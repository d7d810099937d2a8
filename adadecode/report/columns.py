"""docs/schema.md, made from the schemas and what columns mean: `python -m adadecode.report.columns > docs/schema.md`."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from adadecode.methods import METHODS
from adadecode.report.schema import PLAN, SAMPLES, SCHEMA_VERSION, SCORES, SUMMARY, SWEEP, VERIFY


class Meaning(NamedTuple):
    """What a column says, and in which unit; empty where it has none."""

    what: str
    unit: str = ""


SAMPLES_COLUMNS: dict[str, Meaning] = {
    "run_id": Meaning("the run that made the row"),
    "task": Meaning("data set"),
    "sample_id": Meaning("the sample's id within the task"),
    "method": Meaning(f"[the method](methods.md): {', '.join(f'`{name}`' for name in METHODS)}"),
    "repeat": Meaning("repetition, from 0"),
    "turn": Meaning("turn of the conversation, from 0; not there in files before schema version 4: 0"),
    "category": Meaning("kind of the sample within its task, such as `translation`; null where it has none"),
    "shard": Meaning("shard that holds the sample"),
    "status": Meaning("`ok` or `error`"),
    "prompt_len": Meaning("length of the prompt", "tokens"),
    "output_len": Meaning("length of the output, EOS included", "tokens"),
    "prompt_token_ids": Meaning("what the model was given"),
    "output_token_ids": Meaning("what it gave: ids of the engine, never re-tokenised text"),
    "output_text": Meaning("the output decoded"),
    "finish_reason": Meaning(
        "`eos`, `stop` (by a stop string, which `output_text` ends before and whose tokens are there), `length` or `error`",
    ),
    "reference": Meaning("the answer that scoring compares with"),
    "correct": Meaning(
        "whether the output has the answer, by value for numbers; null where the task does not say. Metrics of "
        "the field are in `scores.parquet`",
    ),
    "sampling_key": Meaning(
        "key of the noise by which the output was drawn, 16 hexadecimal digits: a hash of `sampling_seed`, task, sample, "
        "repeat and turn, the same for all methods; null where decoding is greedy, and in files before schema version 6",
    ),
    "ttft_s": Meaning("prefill start to the first verified token", "s"),
    "decode_s": Meaning("`e2e_s - ttft_s`", "s"),
    "e2e_s": Meaning("prefill start to the last token", "s"),
    "tpot_s": Meaning("`decode_s / (output_len - 1)`; null below two tokens", "s/token"),
    "step_gaps_s": Meaning("time of each round", "s"),
    "num_rounds": Meaning("rounds after the prefill"),
    "num_drafted": Meaning("tokens proposed, by whatever drafts", "tokens"),
    "num_accepted": Meaning(
        "of those, tokens that verification kept; for a lossy method all that were not rejected early",
        "tokens",
    ),
    "exits": Meaning("the exit layers used; 0 for n-grams, a draft model and Medusa heads", "layers"),
    "drafted_per_exit": Meaning("`num_drafted` by exit layer", "tokens"),
    "accepted_per_exit": Meaning("`num_accepted` by exit layer", "tokens"),
    "draft_depths": Meaning("per output token: the exit layer it was drafted at, or L for the full model", "layers"),
    "rejected": Meaning(
        "`num_drafted - num_accepted` drafts that were not accepted, in the order of their rounds: `round_idx`, from 0; "
        "`position`, at which the draft would have stood in the output; its `token_id`; the `exit` layer it came from; "
        "also right ones past the end of the output. Null in files before schema version 5 and those of transformers",
    ),
    "layers_per_token": Meaning(
        "batched layer executions of the model per token after the first; L for vanilla; null below two tokens",
        "layers",
    ),
    "parity": Meaning(
        "`exact`, `near_tie` or `mismatch` against `vanilla` of the same sample and repeat; null for `vanilla` itself, and "
        "for methods of transformers where tokens are drawn: it draws them by noise of its own",
    ),
    "logits_equal": Meaning("whether the bits of all accepted logits equal vanilla's; null when not recorded"),
    "first_diff_idx": Meaning("output position of the first difference; null when equal", "tokens"),
    "vanilla_token_id": Meaning("vanilla's token there; null past its end"),
    "method_token_id": Meaning("the method's token there; null past its end"),
    "vanilla_margin": Meaning("vanilla's top-1 minus top-2 logit there", "logits"),
    "method_margin": Meaning("the method's top-1 minus top-2 logit there", "logits"),
    "logits_digest": Meaning(
        "BLAKE2b-128 of the accepted logits' bytes; null for a lossy method, which computes none for its drafts",
    ),
    "lossy": Meaning(
        "whether the method keeps what nothing verified: true for `adadecode-unverified` and `layer-skipping`; "
        "null in files of schema version 1",
    ),
    "width": Meaning("rows in every decode step (W)", "rows"),
    "order_idx": Meaning("0: ran first of the sample's methods"),
    "worker_id": Meaning("the worker that made the row"),
    "attempt": Meaning("the attempt at the shard"),
    "started_at": Meaning("start of the generation, microseconds", "UTC"),
    "error_type": Meaning("class of the error, such as `PromptTooLongError`; null when ok"),
    "error_message": Meaning("its message in one line of at most 1000 characters; null when ok"),
}
PLAN_COLUMNS: dict[str, Meaning] = {
    "task": Meaning("data set"),
    "sample_id": Meaning("the sample's id within the task"),
    "shard": Meaning("shard that holds the sample"),
    "prompt_hash": Meaning("hash of the prompt: a changed data set is noticed"),
    "num_turns": Meaning("turns of the sample; not there in files before schema version 4: 1"),
}
VERIFY_COLUMNS: dict[str, Meaning] = {
    "task": Meaning("as in samples: of the key"),
    "sample_id": Meaning("as in samples: of the key"),
    "method": Meaning("as in samples: of the key"),
    "repeat": Meaning("as in samples: of the key"),
    "turn": Meaning("as in samples: of the key"),
    "category": Meaning("as in samples"),
    "parity": Meaning("as in samples; null also when vanilla's row is missing or an error"),
    "logits_equal": Meaning("whether the two digests are equal; null when one is missing"),
    "first_diff_idx": Meaning("recomputed; null when the ids are equal, also if the finish reasons are not", "tokens"),
    "vanilla_token_id": Meaning("recomputed"),
    "method_token_id": Meaning("recomputed"),
    "vanilla_margin": Meaning("as stored; null when stored for another position", "logits"),
    "method_margin": Meaning("as stored; null when stored for another position", "logits"),
    "consistency": Meaning(
        "share of the output positions that hold vanilla's token, of those of the longer output; null as `parity`",
    ),
}
SUMMARY_COLUMNS: dict[str, Meaning] = {
    "task": Meaning("data set"),
    "category": Meaning("kind of samples that the row is of; null: the whole task, which counts them all"),
    "method": Meaning("as in samples"),
    "n": Meaning("ok rows, all repeats"),
    "num_errors": Meaning("error rows"),
    "num_output_tokens": Meaning("sum of `output_len`", "tokens"),
    "tokens_per_s": Meaning("sum of tokens / sum of `e2e_s`", "tokens/s"),
    "decode_tokens_per_s": Meaning("sum of tokens after the first / sum of `decode_s`", "tokens/s"),
    "ttft_p50_s": Meaning("median", "s"),
    "ttft_p90_s": Meaning("90th percentile", "s"),
    "num_tpot": Meaning("ok rows of two or more tokens: those that have a TPOT"),
    "tpot_mean_s": Meaning("mean over samples", "s/token"),
    "tpot_p50_s": Meaning("median", "s/token"),
    "tpot_p90_s": Meaning("90th percentile", "s/token"),
    "e2e_p50_s": Meaning("median", "s"),
    "e2e_p90_s": Meaning("90th percentile", "s"),
    "num_drafted": Meaning("sum", "tokens"),
    "num_accepted": Meaning("sum", "tokens"),
    "acceptance_rate": Meaning(
        "`num_accepted / num_drafted`; null when nothing was drafted, and for a lossy method, which verifies nothing",
    ),
    "tokens_per_round": Meaning("tokens after the first / rounds; 1 for vanilla", "tokens"),
    "layers_per_token": Meaning("mean over the tokens after the first", "layers"),
    "baseline": Meaning(
        "of `vanilla` and `vanilla-w1` the one with the lesser mean log `e2e_s`: the denominator of `speedup_geomean`",
    ),
    "num_prompts": Meaning(
        "prompts behind `speedup_geomean` and its interval: those with a (sample, repeat) that both methods finished",
    ),
    "speedup_geomean": Meaning("geometric mean over prompts of baseline `e2e_s` / method `e2e_s`", "ratio"),
    "speedup_geomean_low": Meaning(
        "95 % interval; null with fewer than 8 prompts or when all ratios are equal",
        "ratio",
    ),
    "speedup_geomean_high": Meaning("its upper end", "ratio"),
    "baseline_total": Meaning("the vanilla with the least total `e2e_s`: the denominator of `speedup_total`"),
    "speedup_total": Meaning("sum of its `e2e_s` / sum of method `e2e_s`", "ratio"),
    "num_parity_exact": Meaning("rows whose recomputed parity is `exact`; null for `vanilla`"),
    "num_parity_checked": Meaning("rows with a partner to compare with"),
    "num_logits_equal": Meaning("rows with equal digests; null when none was recorded"),
    "num_logits_checked": Meaning("rows with two digests"),
    "num_correct": Meaning("rows that are `correct`; null where the task does not say"),
    "num_scored": Meaning("rows of which it is known"),
    "consistency": Meaning("mean over rows of verify's; 1 where every output is vanilla's; null for `vanilla`"),
    "lossy": Meaning("as in samples, never null"),
    "num_engines": Meaning(
        "different engines (kernels, processor, GPU, driver, threads, torch, Python) behind the task's rows: past"
        " 1 every speed is an average over them; null in tables of older versions",
    ),
}
SCORES_COLUMNS: dict[str, Meaning] = {
    "task": Meaning("data set"),
    "sample_id": Meaning("the sample's id within the task"),
    "turn": Meaning("as in samples"),
    "method": Meaning("as in samples"),
    "repeat": Meaning("as in samples; null for a metric over all repeats of the turn"),
    "metric": Meaning("what the scorer calls it, as below"),
    "score": Meaning("null where the scorer failed on the row"),
    "scorer": Meaning("the scorer's name"),
    "scorer_version": Meaning("grows when the scorer may give another score"),
    "reason": Meaning("why there is no score, or why a program did not pass"),
    "output_hash": Meaning("hash of the output and the reference that were scored; null over repeats"),
}
CELL = Meaning("the cell's name, which is its folder's; the settings are in its `run.json`")

TABLES: dict[str, tuple[str, pa.Schema, Mapping[str, Meaning]]] = {
    "samples": ("a row per sample, turn, method and repeat, in files under `samples/`", SAMPLES, SAMPLES_COLUMNS),
    "plan": ("a row per planned sample, in `plan.parquet`", PLAN, PLAN_COLUMNS),
    "verify": ("a row per ok row of every method but `vanilla`, in `verify.parquet`", VERIFY, VERIFY_COLUMNS),
    "summary": ("a row per task, category and method, in `summary.parquet`", SUMMARY, SUMMARY_COLUMNS),
    "scores": ("a row per ok row and metric of its task's scorer, in `scores.parquet`", SCORES, SCORES_COLUMNS),
    "sweep": ("the summaries of a sweep's cells, in `sweep.parquet`", SWEEP, {"cell": CELL} | SUMMARY_COLUMNS),
}
SHORT = {"double": "float64", "float": "float32"}  # Arrow's names that say less

HEAD = f"""# Tables

*Made from the program by `python -m adadecode.report.columns`; a test compares this page with it.*

Every column of every table of a run, of schema version {SCHEMA_VERSION}. [results/README.md](../results/README.md) says how
the tables are made and what their numbers mean, [queries.md](queries.md) has queries to start from.
A column that is *required* is never null; elsewhere null means not measured, or what the column says.
"""


def page() -> str:
    """The page: a section per table."""
    return "\n".join([HEAD, *(line for name in TABLES for line in section(name))])


def section(name: str) -> Iterator[str]:
    """One table: what a row is, and a line per column."""
    what, schema, meanings = TABLES[name]
    yield f"## {name}\n"
    yield f"{what[0].upper()}{what[1:]}.\n"
    yield "| column | type | unit | meaning |"
    yield "|---|---|---|---|"
    for field in schema:
        of = meanings[field.name]
        required = "" if field.nullable else ", required"
        yield f"| `{field.name}` | {type_text(field.type)}{required} | {of.unit} | {of.what} |"
    yield ""


def type_text(type_: pa.DataType) -> str:
    """The type of a column as the page has it."""
    if isinstance(type_, pa.ListType):
        return f"list of {type_text(type_.value_type)}"
    if isinstance(type_, pa.StructType):
        return f"struct ({', '.join(f'{of.name} {type_text(of.type)}' for of in type_)})"
    if isinstance(type_, pa.TimestampType):
        return f"timestamp ({type_.unit}, {type_.tz})"
    return SHORT.get(str(type_), str(type_))


if __name__ == "__main__":
    print(page(), end="")
