"""Faults planted in the rows of a finished run, each found by a line of its own."""

import math

import pytest

from adadecode.report.row_checks import MEASURED
from adadecode.report.schema import SAMPLES
from tests.planting import FIRST, OURS, VANILLA, W1, Row, altered_first, each, once, other_prompt, plant, swapped

TIMES = ("ttft_s", "decode_s", "e2e_s", "tpot_s", "step_gaps_s")
FAILED = dict.fromkeys(MEASURED) | {"status": "error", "finish_reason": "error", "error_type": "X", "width": None}
ONE_TOKEN = {
    "output_len": 1,
    "output_token_ids": [5],
    "num_rounds": 0,
    "step_gaps_s": [],
    "decode_s": 0.0,
    "e2e_s": 1.0,
}

FAULTS = {
    "a key of a greedy run": (
        once(OURS, sampling_key="0" * 16),
        f"sampling_key is there, but decoding is greedy: 1 rows, first {FIRST} {OURS} repeat 0",
    ),
    # times
    "e2e_s divided by ten": (
        each(OURS, e2e_s=lambda r: r["e2e_s"] / 10),
        f"e2e_s is not ttft_s + decode_s: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "e2e_s and ttft_s shifted": (
        each(OURS, e2e_s=lambda r: r["e2e_s"] - 0.02, decode_s=lambda r: r["decode_s"] - 0.02),
        f"decode_s is not the sum of step_gaps_s: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "one gap": (
        each(VANILLA, step_gaps_s=lambda r: [g * 1.5 for g in r["step_gaps_s"]]),
        f"decode_s is not the sum of step_gaps_s: 12 rows, first {FIRST} {VANILLA} repeat 0",
    ),
    "tpot_s halved": (
        each(W1, tpot_s=lambda r: r["tpot_s"] / 2),
        f"tpot_s is not decode_s / (output_len - 1): 12 rows, first {FIRST} {W1} repeat 0",
    ),
    "e2e_s 0": (once(OURS, e2e_s=0.0), f"e2e_s is no positive, finite number: 1 rows, first {FIRST} {OURS} repeat 0"),
    "e2e_s negative": (once(OURS, e2e_s=-1.0), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s infinite": (once(OURS, e2e_s=math.inf), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s NaN": (once(VANILLA, e2e_s=math.nan), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s null": (once(VANILLA, e2e_s=None), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s 0 in all rows": (each(e2e_s=lambda r: 0.0), "e2e_s is no positive, finite number: 36 rows"),
    "e2e_s null in all rows": (each(e2e_s=lambda r: None), "e2e_s is no positive, finite number: 36 rows"),
    "ttft_s infinite": (once(OURS, ttft_s=math.inf), "ttft_s is no positive, finite number: 1 rows"),
    "ttft_s 0": (once(OURS, ttft_s=0.0), "ttft_s is no positive, finite number: 1 rows"),
    "decode_s negative": (once(OURS, decode_s=-1e-3), "decode_s is no finite number from 0 on: 1 rows"),
    "tpot_s null": (once(OURS, tpot_s=None), "tpot_s is no positive, finite number: 1 rows"),
    "tpot_s of one token": (
        once(W1, **ONE_TOKEN, ttft_s=1.0),
        f"tpot_s is there below two output tokens: 1 rows, first {FIRST} {W1} repeat 0",
    ),
    "tpot_s negative": (once(OURS, tpot_s=-1e-3), "tpot_s is no positive, finite number: 1 rows"),
    "a gap NaN": (
        once(OURS, step_gaps_s=[math.nan] * 14),
        "step_gaps_s has values that are no finite numbers from 0 on: 1 rows",
    ),
    "a gap null": (each(OURS, step_gaps_s=lambda r: None), "step_gaps_s are not one per round: 12 rows"),
    # lengths and rounds
    "output_len tripled": (
        each(OURS, output_len=lambda r: r["output_len"] * 3),
        f"output_len is not the number of output_token_ids: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "negative ids": (
        each(output_token_ids=altered_first("output_token_ids", 3, -1)),
        "output_token_ids has negative ids: 36 rows",
    ),
    "a prompt of negative ids": (
        each(prompt_token_ids=altered_first("prompt_token_ids", 0, -1)),
        "prompt_token_ids has negative ids: 36 rows",
    ),
    "digests that are none": (
        each(logits_digest=lambda r: "equal"),
        f"logits_digest is not 32 hexadecimal digits: 36 rows, first {FIRST} {OURS} repeat 0",
    ),
    "an output without ids": (
        once(OURS, output_token_ids=None),
        "output_len is not the number of output_token_ids: 1 rows",
    ),
    "an empty output": (once(OURS, output_token_ids=[], output_len=0), "status is ok, but there is no output: 1 rows"),
    "prompt_len": (each(prompt_len=lambda r: r["prompt_len"] - 1), "prompt_len is not the number of prompt_token_ids"),
    "no prompt": (
        each(prompt_len=lambda r: None, prompt_token_ids=lambda r: None),
        "status is ok, but there is no prompt: 36 rows",
    ),
    "a depth too few": (
        each(OURS, draft_depths=lambda r: r["draft_depths"][:-1]),
        "draft_depths are not one per output token: 12 rows",
    ),
    "one round": (
        each(OURS, num_rounds=lambda r: 1),
        "num_rounds + num_accepted are not the tokens after the first: 12 rows",
    ),
    "a round more of vanilla": (
        once(VANILLA, num_rounds=48),
        "num_rounds + num_accepted are not the tokens after the first: 1 rows",
    ),
    # drafts
    "accepted twice what was drafted": (
        each(OURS, num_accepted=lambda r: 2 * r["num_drafted"]),
        f"num_accepted is more than num_drafted: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "drafted doubled": (
        each(OURS, num_drafted=lambda r: 2 * r["num_drafted"]),
        "num_drafted is not the sum of drafted_per_exit: 12 rows",
    ),
    "accepted one fewer": (
        each(OURS, num_accepted=lambda r: r["num_accepted"] - 1),
        "num_accepted is not the sum of accepted_per_exit: 12 rows",
    ),
    "more accepted than a round holds": (
        once(OURS, num_accepted=45, num_rounds=2, num_drafted=45),
        "more drafts were accepted than max_drafts a round: 1 rows",
    ),
    "accepted per exit past drafted": (
        each(
            OURS, drafted_per_exit=lambda r: r["accepted_per_exit"], accepted_per_exit=lambda r: r["drafted_per_exit"]
        ),
        "accepted_per_exit has more than drafted_per_exit, or less than none: 12 rows",
    ),
    "accepted per exit exchanged": (
        each(OURS, accepted_per_exit=lambda r: r["accepted_per_exit"][::-1]),
        "accepted_per_exit is not how often draft_depths has each exit: 10 rows",
    ),
    "an exit fewer": (
        each(OURS, exits=lambda r: r["exits"][:-1]),
        "exits, drafted_per_exit and accepted_per_exit are not of one length: 12 rows",
    ),
    "exits out of order": (each(OURS, exits=lambda r: r["exits"][::-1]), "exits do not increase from 0 on: 12 rows"),
    "exits of another worker": (
        each(
            OURS,
            exits=lambda r: [0, 5, 10],
            draft_depths=lambda r: [5 if depth == 4 else depth for depth in r["draft_depths"]],
        ),
        "exits are not those of the method and the worker: 12 rows",
    ),
    "a depth that is none": (
        once(OURS, draft_depths=[16, 7, *[16] * 46]),
        "draft_depths has other depths than exits and the model's last layer: 1 rows",
    ),
    "no counts of drafts": (each(OURS, num_drafted=lambda r: None), "a method that drafts has no counts of drafts: 12"),
    "counts of drafts of vanilla": (
        each(VANILLA, num_drafted=lambda r: 0),
        "a method that drafts nothing has counts of drafts: 12 rows",
    ),
    # layers
    "half a layer a token": (
        each(OURS, layers_per_token=lambda r: 0.5),
        f"layers_per_token is not what these rounds and drafts ran: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "layers no whole number": (
        each(OURS, layers_per_token=lambda r: r["layers_per_token"] + 0.001),
        "layers_per_token is not what these rounds and drafts ran: 12 rows",
    ),
    "layers infinite": (
        once(VANILLA, layers_per_token=math.inf),
        "layers_per_token is not what these rounds and drafts ran: 1 rows",
    ),
    "layers null": (
        each(OURS, layers_per_token=lambda r: None),
        "layers_per_token is missing, or there below two tokens",
    ),
    "vanilla of half the layers": (
        each(VANILLA, layers_per_token=lambda r: 8.0),
        "the number of the model's layers is not that of the others: 24 rows",
    ),
    # how it ended
    "finish_reason none that is known": (
        each(finish_reason=lambda r: "halt"),
        "finish_reason is none of eos, length and stop: 36 rows",
    ),
    "an end at a stop string of a run that has none": (
        each(finish_reason=lambda r: "stop"),
        "finish_reason is stop, but the run has no stop strings: 36 rows",
    ),
    "an end that others go on after": (
        once(VANILLA, finish_reason="eos"),
        "the output goes on after a token that ends others: ",
    ),
    "an end that is none for others": (
        once(VANILLA, finish_reason="eos"),
        "finish_reason is length, but the output ends in a token that ends others: 5 rows",
    ),
    "longer than max_new_tokens": (
        each(output_token_ids=lambda r: [*r["output_token_ids"], 5], output_len=lambda r: 49),
        "the output is longer than max_new_tokens: 36 rows",
    ),
    "cut short": (
        once(VANILLA, output_token_ids=[5] * 10, output_len=10),
        "finish_reason is length, but neither max_new_tokens nor the context is reached: 1 rows",
    ),
    # labels and errors
    "status unknown": (once(W1, status="fine"), "status is neither ok nor error: 1 rows"),
    "an error that has measurements": (
        once(W1, status="error", error_type="X", finish_reason="error"),
        "status is error, but the row has measurements: 1 rows",
    ),
    "an error without its type": (
        once(W1, status="error", finish_reason="error"),
        "status is error, but error_type is missing: 1 rows",
    ),
    "an error that ended": (
        once(W1, status="error", error_type="X"),
        "status is error, but finish_reason is not: 1 rows",
    ),
    "an ok row with an error": (once(W1, error_type="X"), "status is ok, but the row has an error: 1 rows"),
    "lossy": (each(lossy=lambda r: True), "lossy is not what the method is: 36 rows"),
    "width": (each(W1, width=lambda r: 8), "width is not that of the method and the worker: 12 rows"),
    "run_id": (each(run_id=lambda r: "another"), "run_id is not that of run.json: 36 rows"),
    "attempt": (each(attempt=lambda r: "f" * 12), "attempt is not that of their commit: 36 rows"),
    "order_idx twice": (each(order_idx=lambda r: 0), "order_idx is missing or that of another method: 24 rows"),
    "order_idx turned": (
        each(order_idx=lambda r: (r["order_idx"] + 1) % 3),
        "order_idx is not the method's turn at this sample: 36 rows",
    ),
    # claims
    "no digests at all": (
        each(logits_digest=lambda r: None, logits_equal=lambda r: None),
        "logits_digest is missing, but the logits were to be compared: 36 rows",
    ),
    "one digest and its claim": (
        once(OURS, logits_digest=None, logits_equal=None),
        f"logits_digest is missing, but the logits were to be compared: 1 rows, first {FIRST} {OURS} repeat 0",
    ),
    "a claim on digests withdrawn": (
        each(OURS, logits_equal=lambda r: None),
        "logits_equal is missing, but there are two digests: 12 rows",
    ),
    "parity withdrawn": (
        each(OURS, parity=lambda r: None),
        "parity is missing, but there is an output of vanilla: 12 rows",
    ),
    "parity with an output that failed": (
        once(VANILLA, **FAILED),
        "parity is claimed, but there is no output of vanilla: 2 rows",
    ),
    "equal logits of a digest that is not there": (
        once(VANILLA, logits_digest=None),
        "logits_equal is claimed, but there are no two digests: 2 rows",
    ),
    "vanilla's own parity": (each(VANILLA, parity=lambda r: "exact"), "vanilla claims parity with itself: 12 rows"),
    "parity unknown": (each(W1, parity=lambda r: "same"), "parity is none of exact, near_tie and mismatch: 12 rows"),
    "a near-tie that is none": (
        once(W1, parity="near_tie", vanilla_margin=0.6),
        "parity is near_tie, but vanilla_margin is beyond 0.5: 1 rows",
    ),
    "a margin of no difference": (
        once(W1, vanilla_margin=0.5),
        f"vanilla_margin is there, but first_diff_idx is not: 1 rows, first {FIRST} {W1} repeat 0",
    ),
    "a margin without end": (once(W1, method_margin=math.inf), "method_margin is no finite number from 0 on: 1 rows"),
    "a margin that is missing": (
        once(W1, first_diff_idx=0, vanilla_token_id=5, method_token_id=6, vanilla_margin=0.5),
        "method_margin is missing: 1 rows",
    ),
    "vanilla's margin that is missing": (
        once(W1, first_diff_idx=0, vanilla_token_id=5, method_token_id=6, method_margin=0.5),
        "vanilla_margin is missing: 1 rows",
    ),
    # rows beside each other
    "another prompt of one method": (
        each(OURS, prompt_token_ids=other_prompt),
        f"prompt_token_ids are not those of the sample's other rows: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "another reference of one method": (
        each(OURS, reference=lambda r: "7"),
        "reference is not that of the sample's other rows: 12 rows",
    ),
    "another text of one method": (
        each(W1, output_text=lambda r: "four"),
        "output_text is not that of the same output in another row: 12 rows",
    ),
    "repeats of vanilla that differ": (
        lambda rows: [
            row.update(output_token_ids=[row["output_token_ids"][0] + 1, *row["output_token_ids"][1:]])
            for row in rows
            if row["repeat"] == 1
        ],
        "vanilla's output is not that of its other repeats: 6 rows",
    ),
    "a pair whose methods were swapped": (
        lambda rows: swapped(rows, "method"),
        "a method that drafts has no counts of drafts: 1 rows",
    ),
    "a pair whose times were swapped": (
        lambda rows: swapped(rows, *TIMES),
        "step_gaps_s are not one per round: 2 rows",
    ),
    # scores
    "all correct": (each(correct=lambda r: True), "correct is not what output_text and reference give: 36 rows"),
    "no scores": (each(correct=lambda r: None), "correct is not what output_text and reference give: 36 rows"),
    "answers that are none": (
        each(reference=lambda r: "x"),
        "correct is not what output_text and reference give: 36 rows",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_planted_in_the_rows_is_a_line_and_exit_code_3(run, cli, name):
    change, line = FAULTS[name]
    plant(run, change)
    for command in ("verify", "report"):
        result = cli(command, run)
        assert result.exit_code == 3, result.output
        found = [told.partition(": ")[2] for told in result.stdout.splitlines()]  # after the name of the check
        assert [told for told in found if told.startswith(line)], result.stdout
        assert "the tables contradict themselves in " in result.stderr


MAY_BE_NULL = {
    *("lossy", "first_diff_idx", "vanilla_token_id", "method_token_id", "vanilla_margin", "method_margin"),
    *("error_type", "error_message", "turn", "category", "rejected", "sampling_key"),
}  # in an ok row that equals vanilla's; lossy in files of version 1, and this run's version has the last four not


@pytest.mark.parametrize("name", [name for name in SAMPLES.names if name not in MAY_BE_NULL])
def test_a_value_missing_in_any_column_of_one_row_is_never_passed_over(run, cli, name):
    def forget(rows: list[Row]) -> None:
        next(row for row in rows if row["method"] == OURS)[name] = None

    nullable = all(field.nullable for field in SAMPLES if field.name == name)
    plant(run, forget, fits=nullable)
    result = cli("verify", run)
    assert result.exit_code == (3 if nullable else 2), result.output
