import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.report.schema import SAMPLES, SUMMARY
from adadecode.report.summary import ERROR_COLUMNS, MAX_SHOWN_LEN, error_lines, parity_line, summarise


@pytest.fixture
def summary_of(samples_table):
    """{(task, method): the SUMMARY row} of some samples rows."""

    def rows_by_key(*rows):
        summary = summarise(samples_table(*rows))
        assert summary.schema == SUMMARY
        return {(line["task"], line["method"]): line for line in summary.to_pylist()}

    return rows_by_key


def test_measurements_by_hand(summary_of, row):
    lines = summary_of(
        row("vanilla", "s0"),
        row("vanilla", "s1"),
        row(
            "adadecode",
            "s0",
            output_token_ids=[5, 6, 7, 8, 9],
            ttft_s=1.0,
            e2e_s=3.0,
            num_rounds=2,
            num_drafted=4,
            num_accepted=2,
            layers_per_token=6.0,
            correct=True,
        ),
        row(
            "adadecode",
            "s1",
            output_token_ids=[5, 6, 7],
            ttft_s=2.0,
            e2e_s=5.0,
            num_rounds=1,
            num_drafted=1,
            num_accepted=1,
            layers_per_token=3.0,
            correct=False,
        ),
    )
    line = lines["demo", "adadecode"]
    expected = {
        "n": 2,
        "num_errors": 0,
        "num_output_tokens": 8,
        "tokens_per_s": 1.0,  # 8 / (3 + 5)
        "decode_tokens_per_s": 1.2,  # (4 + 2) / (2 + 3)
        "ttft_p50_s": 1.5,
        "ttft_p90_s": 1.9,
        "num_tpot": 2,
        "tpot_mean_s": 1.0,  # (2/4 + 3/2) / 2
        "tpot_p50_s": 1.0,
        "tpot_p90_s": 1.4,
        "e2e_p50_s": 4.0,
        "e2e_p90_s": 4.8,
        "num_drafted": 5,
        "num_accepted": 3,
        "acceptance_rate": 0.6,
        "tokens_per_round": 2.0,  # (4 + 2) / (2 + 1)
        "layers_per_token": 5.0,  # (6 * 4 + 3 * 2) / 6
        "num_correct": 1,
        "num_scored": 2,
    }
    assert {name: line[name] for name in expected} == pytest.approx(expected)


def test_what_was_not_measured_is_null(summary_of, row):
    line = summary_of(row("vanilla", output_token_ids=[5], ttft_s=2.5, num_rounds=0, layers_per_token=None))[
        "demo", "vanilla"
    ]
    unmeasured = (
        *("decode_tokens_per_s", "tpot_mean_s", "tpot_p50_s", "tpot_p90_s", "acceptance_rate", "tokens_per_round"),
        *("layers_per_token", "num_parity_exact", "num_parity_checked", "num_logits_equal", "num_logits_checked"),
        *("num_correct", "num_scored"),
    )
    assert {name: line[name] for name in unmeasured} == dict.fromkeys(unmeasured)
    assert (line["n"], line["num_tpot"], line["num_drafted"]) == (1, 0, 0)


def test_a_vanilla_round_gives_one_token(summary_of, row):
    assert summary_of(row("vanilla"))["demo", "vanilla"]["tokens_per_round"] == 1.0


def test_errors_are_counted_and_never_measured(summary_of, row, error_row):
    lines = summary_of(
        row("vanilla", "s0", e2e_s=4.0),
        row("vanilla", "s1", e2e_s=100.0),
        row("adadecode", "s0", e2e_s=2.0),
        error_row("adadecode", "s1"),
    )
    line = lines["demo", "adadecode"]
    assert (line["n"], line["num_errors"], line["num_output_tokens"]) == (1, 1, 3)
    assert line["num_prompts"] == 1
    assert line["speedup_total"] == pytest.approx(2.0)  # s1 has no pair, so vanilla's 100 s are not in it
    assert (line["num_parity_exact"], line["num_parity_checked"]) == (1, 1)


def test_a_method_with_only_errors_has_a_line_of_nulls(summary_of, row, error_row):
    line = summary_of(row("vanilla"), error_row("adadecode"))["demo", "adadecode"]
    assert (line["n"], line["num_errors"], line["num_output_tokens"], line["num_prompts"]) == (0, 1, 0, 0)
    assert line["tokens_per_s"] is None
    assert line["speedup_geomean"] is None
    assert (line["num_parity_exact"], line["num_parity_checked"]) == (0, 0)


@pytest.mark.parametrize(
    ("vanilla_s", "w1_s", "baseline", "speedup"), [(4.0, 6.0, "vanilla", 2.0), (4.0, 3.0, "vanilla-w1", 1.5)]
)
def test_the_denominator_is_the_faster_vanilla(summary_of, row, vanilla_s, w1_s, baseline, speedup):
    lines = summary_of(row("vanilla", e2e_s=vanilla_s), row("vanilla-w1", e2e_s=w1_s), row("adadecode", e2e_s=2.0))
    assert {line["baseline"] for line in lines.values()} == {baseline}
    assert lines["demo", "adadecode"]["speedup_total"] == pytest.approx(speedup)
    assert lines["demo", baseline]["speedup_geomean"] == 1.0
    assert lines["demo", baseline]["speedup_geomean_low"] is None


def test_the_denominator_is_chosen_on_prompts_both_vanillas_finished(summary_of, row, error_row):
    # vanilla-w1 has the smaller sum only because its slow prompt failed
    lines = summary_of(
        row("vanilla", "s0", e2e_s=2.0),
        row("vanilla", "s1", e2e_s=50.0),
        row("vanilla-w1", "s0", e2e_s=3.0),
        error_row("vanilla-w1", "s1"),
    )
    assert lines["demo", "vanilla"]["baseline"] == "vanilla"


def test_the_denominator_is_chosen_per_task(summary_of, row):
    lines = summary_of(
        row("vanilla", task="a", e2e_s=2.0),
        row("vanilla-w1", task="a", e2e_s=3.0),
        row("vanilla", task="b", e2e_s=3.0),
        row("vanilla-w1", task="b", e2e_s=2.0),
    )
    assert {key: line["baseline"] for key, line in lines.items()} == {
        ("a", "vanilla"): "vanilla",
        ("a", "vanilla-w1"): "vanilla",
        ("b", "vanilla"): "vanilla-w1",
        ("b", "vanilla-w1"): "vanilla-w1",
    }


def test_when_one_vanilla_only_failed_the_other_is_the_denominator(summary_of, row, error_row):
    lines = summary_of(error_row("vanilla"), row("vanilla-w1", e2e_s=3.0), row("adadecode", e2e_s=1.0))
    assert lines["demo", "adadecode"]["baseline"] == "vanilla-w1"
    assert lines["demo", "adadecode"]["speedup_total"] == pytest.approx(3.0)


def test_without_any_vanilla_there_is_no_speedup(summary_of, row):
    line = summary_of(row("adadecode"))["demo", "adadecode"]
    assert (line["baseline"], line["num_prompts"], line["speedup_geomean"]) == (None, None, None)
    assert (line["num_parity_exact"], line["num_parity_checked"]) == (0, 0)


def test_repeats_are_one_prompt_each_in_the_interval(summary_of, row):
    # each repeat is paired with its own partner: ratios 2 and 8 on s0, 9 on s1
    lines = summary_of(
        row("vanilla", "s0", repeat=0, e2e_s=2.0),
        row("vanilla", "s0", repeat=1, e2e_s=8.0),
        row("vanilla", "s1", repeat=0, e2e_s=9.0),
        row("adadecode", "s1", repeat=0, e2e_s=1.0),
        row("adadecode", "s0", repeat=1, e2e_s=1.0),
        row("adadecode", "s0", repeat=0, e2e_s=1.0),
    )
    line = lines["demo", "adadecode"]
    assert (line["n"], line["num_prompts"]) == (3, 2)
    assert line["speedup_geomean"] == pytest.approx(6.0)  # sqrt(sqrt(2 * 8) * 9)
    assert line["speedup_total"] == pytest.approx(7.0)  # (5 + 9) / (1 + 1)


def test_each_speedup_is_over_the_vanilla_that_is_faster_by_it(summary_of, row):
    # on every prompt adadecode is as fast as the better of the two
    wide, narrow, ours = [1.0] * 19 + [30.0], [1.2] * 19 + [25.0], [1.0] * 19 + [25.0]
    lines = summary_of(
        *(
            row(method, f"s{i}", ttft_s=0.5, e2e_s=seconds[i])
            for method, seconds in (("vanilla", wide), ("vanilla-w1", narrow), ("adadecode", ours))
            for i in range(20)
        )
    )
    line = lines["demo", "adadecode"]
    assert (line["baseline"], line["baseline_total"]) == ("vanilla", "vanilla-w1")
    assert line["speedup_geomean"] == pytest.approx((30 / 25) ** (1 / 20))
    assert line["speedup_total"] == pytest.approx(47.8 / 44)
    assert lines["demo", "vanilla"]["speedup_geomean"] == lines["demo", "vanilla-w1"]["speedup_total"] == 1.0


@pytest.mark.parametrize("impossible", [0.0, -1.0, float("inf"), float("nan"), None])
def test_a_time_that_no_clock_can_have_shown_is_in_no_speedup(summary_of, row, impossible):
    lines = summary_of(
        *(row(method, "s0", e2e_s=s) for method, s in (("vanilla", 4.0), ("adadecode", 2.0))),
        *(row(method, "s1") | {"e2e_s": s} for method, s in (("vanilla", 5.0), ("adadecode", impossible))),
    )
    line = lines["demo", "adadecode"]
    assert (line["num_prompts"], line["speedup_geomean"]) == (1, pytest.approx(2.0))
    assert line["speedup_total"] == pytest.approx(2.0)


def test_rows_are_ordered_by_task_then_vanillas_first(samples_table, row):
    summary = summarise(
        samples_table(
            row("transformers", task="z"),
            row("adadecode", task="z"),
            row("vanilla-w1", task="z"),
            row("vanilla", task="z"),
            row("vanilla", task="a"),
            row("adadecode", task="a"),
        )
    )
    assert list(zip(summary["task"].to_pylist(), summary["method"].to_pylist(), strict=True)) == [
        ("z", "vanilla"),
        ("z", "vanilla-w1"),
        ("z", "transformers"),
        ("z", "adadecode"),
        ("a", "vanilla"),
        ("a", "adadecode"),
    ]


def test_a_stored_claim_does_not_reach_the_summary_when_the_ids_contradict_it(summary_of, row):
    line = summary_of(row("vanilla"), row("adadecode", output_token_ids=[5, 9, 7], parity="exact"))["demo", "adadecode"]
    assert (line["num_parity_exact"], line["num_parity_checked"]) == (0, 1)


def test_an_empty_table_gives_an_empty_summary(samples_table):
    summary = summarise(samples_table())
    assert summary.num_rows == 0
    assert summary.schema == SUMMARY


def test_parity_line_counts_the_methods_under_contract_only(samples_table, row):
    samples = samples_table(
        row("vanilla", "s0", logits_digest="aa"),
        row("adadecode", "s0", logits_digest="aa"),
        row("vanilla-w1", "s0", logits_digest="bb", output_token_ids=[1, 2, 3], parity="mismatch"),
        row("vanilla", "s1", logits_digest="cc"),
        row("adadecode", "s1", logits_digest="dd"),
    )
    assert parity_line(summarise(samples)) == "parity 2/2, logits 1/2"


def test_parity_line_leaves_out_logits_that_were_not_recorded(samples_table, row):
    assert parity_line(summarise(samples_table(row("vanilla"), row("adadecode")))) == "parity 1/1"


def test_parity_line_counts_what_a_failed_method_owes(samples_table, row, error_row):
    rows = row("vanilla", "s0"), row("vanilla", "s1"), row("adadecode", "s0"), error_row("adadecode", "s1")
    assert parity_line(summarise(samples_table(*rows))) == "parity 1/2"


def test_parity_line_does_not_boast_of_nothing(samples_table, row):
    assert parity_line(summarise(samples_table(row("vanilla")))) == "parity not checked"


def test_a_table_written_to_parquet_and_read_back_gives_the_same_summary(samples_table, row, error_row, tmp_path):
    samples = samples_table(
        row("vanilla", "s0", e2e_s=4.0, step_gaps_s=[0.5, 0.25], exits=[2, 4], logits_digest="aa"),
        row("adadecode", "s0", e2e_s=2.0, drafted_per_exit=[1, 0], logits_digest="aa", logits_equal=True),
        error_row("adadecode", "s1"),
    )
    file = tmp_path / "task=demo" / "part-00000-a0.parquet"
    file.parent.mkdir()
    pq.write_table(samples, file, compression="zstd")
    back = pq.read_table(file, partitioning=None)
    assert back.schema == SAMPLES
    assert back.equals(samples)
    golden = {
        "task": ["demo", "demo"],
        "method": ["vanilla", "adadecode"],
        "n": [1, 1],
        "num_errors": [0, 1],
        "tokens_per_s": [0.75, 1.5],
        "speedup_total": [1.0, 2.0],
        "num_parity_exact": [None, 1],
        "num_logits_equal": [None, 1],
    }
    summary = summarise(back)
    assert summary.select(list(golden)).to_pydict() == golden
    pq.write_table(summary, tmp_path / "summary.parquet")
    assert pq.read_table(tmp_path / "summary.parquet").equals(summary)


def test_samples_in_several_chunks_are_summarised_as_one_table(samples_table, row):
    samples = samples_table(*(row(method, sample) for sample in ("s0", "s1") for method in ("vanilla", "adadecode")))
    chunked = pa.concat_tables([samples.slice(start, 1) for start in range(4)])
    assert summarise(chunked).equals(summarise(samples))


def test_consistency_is_the_mean_over_samples_and_null_for_vanilla(summary_of, row):
    lines = summary_of(
        row("vanilla", "s0"),
        row("vanilla", "s1"),
        row("adadecode", "s0"),
        row("adadecode", "s1"),
        row("adadecode-unverified", "s0", output_token_ids=[5, 9, 9], parity="mismatch"),
        row("adadecode-unverified", "s1"),
    )
    assert lines["demo", "vanilla"]["consistency"] is None
    assert lines["demo", "adadecode"]["consistency"] == 1.0
    assert lines["demo", "adadecode-unverified"]["consistency"] == pytest.approx((1 / 3 + 1) / 2)


def test_only_the_method_without_verification_is_lossy_and_it_has_no_acceptance_rate(summary_of, row):
    methods = ("vanilla", "vanilla-w1", "adadecode", "adadecode-unverified", "transformers")
    lines = summary_of(*(row(method, num_drafted=2, num_accepted=2) for method in methods))
    assert [method for (_, method), line in lines.items() if line["lossy"]] == ["adadecode-unverified"]
    assert lines["demo", "adadecode"]["acceptance_rate"] == 1.0
    line = lines["demo", "adadecode-unverified"]
    assert (line["num_drafted"], line["num_accepted"], line["acceptance_rate"]) == (2, 2, None)


def test_a_lossy_method_does_not_count_towards_parity(samples_table, row):
    samples = samples_table(
        row("vanilla"), row("adadecode"), row("adadecode-unverified", output_token_ids=[1, 2, 3], parity="mismatch")
    )
    assert parity_line(summarise(samples)) == "parity 1/1"


def failed(error_row, method, sample_id, error_type, message, **values):
    return error_row(method, sample_id, **values) | {"error_type": error_type, "error_message": message}


def test_samples_rows_and_errors_are_counted_and_the_first_is_named(samples_table, row, error_row):
    samples = samples_table(
        *(row(method, f"s{i}") for i in range(4) for method in ("vanilla", "adadecode")),
        failed(error_row, "vanilla", "17", "PromptTooLongError", "the prompt has 900 tokens", task="gsm8k"),
        failed(error_row, "adadecode", "17", "PromptTooLongError", "the prompt has 900 tokens", task="gsm8k"),
        failed(error_row, "adadecode", "s4", "OutOfMemoryError", "CUDA out of memory"),
        failed(error_row, "adadecode", "s4", "OutOfMemoryError", "CUDA out of memory", repeat=1),
        failed(error_row, "adadecode", "s3", "OutOfMemoryError", "CUDA out of memory", repeat=1),
    )
    expected = [
        "errors: 3 of 6 samples failed: adadecode 4, vanilla 1 rows (3 OutOfMemoryError, 2 PromptTooLongError); "
        "first: gsm8k/17: the prompt has 900 tokens"
    ]
    assert error_lines(samples) == expected
    assert error_lines(samples.select(ERROR_COLUMNS)) == expected


def test_equal_ids_of_two_tasks_are_two_samples(samples_table, row, error_row):
    samples = samples_table(row("vanilla", "0", task="a"), error_row("vanilla", "0", task="b"))
    assert error_lines(samples)[0].startswith("errors: 1 of 2 samples failed: vanilla 1 rows (1 NonFiniteLogitsError)")


def test_nothing_is_said_without_errors(samples_table, row):
    assert error_lines(samples_table(row("vanilla"))) == []
    assert error_lines(samples_table()) == []


def test_a_long_message_is_cut(samples_table, error_row):
    (line,) = error_lines(samples_table(failed(error_row, "vanilla", "s0", "ValueError", "x" * 1000)))
    assert line.endswith("first: demo/s0: " + "x" * MAX_SHOWN_LEN + " ...")


def test_a_row_without_type_or_message_is_counted_too(samples_table, error_row):
    (line,) = error_lines(samples_table(failed(error_row, "vanilla", "s0", None, None)))
    assert line.endswith("vanilla 1 rows (1 unknown); first: demo/s0: no message")


def test_each_task_has_its_own_number_of_engines(samples_table, row):
    samples = samples_table(row("vanilla", task="a"), row("vanilla", task="b"))
    summary = summarise(samples, num_engines={"a": 1, "b": 3})
    assert dict(zip(summary["task"].to_pylist(), summary["num_engines"].to_pylist(), strict=True)) == {"a": 1, "b": 3}
