"""`adadecode certify` from the command line to the tables, over real HTTP."""

import json

import pyarrow.parquet as pq
import pytest

from adadecode.report.schema import SAMPLES, SUMMARY, VERIFY
from adadecode.runs.folder import read_samples
from tests.completion_server import Asked, CompletionServer, text_of, tokens_of
from tests.unit.certify.conftest import NUM_PROMPTS

KINDS = ["llama.cpp", "vllm", "sglang", "other"]


def changed_once_in(period: int):
    """A model that changes the fourth token of one output in `period`."""

    def model(asked: Asked) -> list[int]:
        ids = tokens_of(asked.prompt, asked.body["max_tokens"])
        if asked.number % period == period - 1:
            ids[3] += 1
        return ids

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_gives_the_baselines_outputs_is_exact(kind, certify):
    with CompletionServer(kind) as baseline, CompletionServer(kind) as candidate:
        found = certify(baseline, candidate)
    assert found.result.exit_code == 0, found.said
    assert "verdict: exact" in found.said
    assert f"baseline: {baseline.url}/v1, {kind}, model tiny" in found.said
    assert ("compared by text" in found.said) == (kind == "other")
    assert found.run["verdict"]["outcome"] == "exact"
    assert found.run["status"] == "complete"
    rows = read_samples(found.folder).to_pylist()
    assert len(rows) == NUM_PROMPTS * 2 * 2
    for row in rows:
        expected = tokens_of(row_prompt(row), 8)
        assert row["output_token_ids"] == (None if kind == "other" else expected)
        assert (row["output_text"], row["output_len"]) == ("".join(map(text_of, expected)), 8)
        assert row["finish_reason"] == "length"
        assert row["num_accepted"] == (3 if kind == "llama.cpp" else None)
        assert 0 < row["ttft_s"] <= row["e2e_s"]
        assert len(row["step_gaps_s"]) == 7
        assert row["parity"] == (None if (row["method"], row["repeat"]) == ("baseline", 0) else "exact")


def row_prompt(row: dict) -> str:
    return f"prompt {int(row['sample_id'])}"


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_token_in_an_output_is_found_and_named(kind, certify):
    with CompletionServer(kind) as baseline, CompletionServer(kind, model=changed_once_in(20)) as candidate:
        found = certify(baseline, candidate)
    assert found.result.exit_code == 3, found.said
    assert "the candidate is not exact" in found.said
    verify = pq.read_table(found.folder / "verify.parquet").to_pylist()
    (line,) = [row for row in verify if row["parity"] == "mismatch"]
    if kind == "other":  # every token is some characters of text
        same = "".join(map(text_of, tokens_of(row_prompt(line), 3)))
        assert line["first_diff_idx"] > len(same)
        assert f"candidate differs from baseline at character {line['first_diff_idx']}" in found.said
    else:
        token = tokens_of(row_prompt(line), 8)[3]
        assert (line["first_diff_idx"], line["vanilla_token_id"], line["method_token_id"]) == (3, token, token + 1)
        assert f"candidate differs from baseline at token 3: {token + 1}, not {token}" in found.said
        assert line["consistency"] == pytest.approx(7 / 8)


def test_one_changed_token_in_fifty_outputs_is_found(certify, tmp_path):
    with CompletionServer() as baseline, CompletionServer(model=changed_once_in(50)) as candidate:
        found = certify(baseline, candidate, passes=5)
    assert len(candidate.asked) == 50
    assert found.result.exit_code == 3
    assert found.run["verdict"]["num_differ"] == 1


def unsteady(asked: Asked) -> list[int]:
    """A server that gives one of two outputs, in turn over its requests of every prompt."""
    ids = tokens_of(asked.prompt, asked.body["max_tokens"])
    return ids if (asked.number * 7 // 3) % 2 else [*ids[:5], *(199 - token for token in ids[5:])]


def test_a_baseline_that_differs_from_itself_is_told_from_a_candidate_that_differs(certify, tmp_path):
    with CompletionServer(model=unsteady) as baseline, CompletionServer(model=unsteady) as candidate:
        found = certify(baseline, candidate, passes=4)
        assert found.result.exit_code == 0, found.said
        assert found.run["verdict"]["outcome"] == "not more"
        assert found.run["verdict"]["num_unsteady"] > 0
        assert "the baseline differs from itself, and the candidate from it not more (permutation test" in found.said
        candidate.model = lambda asked: [*unsteady(asked)[:-1], 7]
        found = certify(baseline, candidate, passes=4, out=tmp_path / "other")
    assert found.result.exit_code == 3, found.said
    assert found.run["verdict"]["p_value"] <= 0.01
    assert "differs more than the baseline from itself (permutation test" in found.said


def test_an_output_of_another_length_or_another_end_differs(certify, tmp_path):
    def shorter(asked: Asked) -> list[int]:
        return tokens_of(asked.prompt, asked.body["max_tokens"] - (asked.number == 0))

    with CompletionServer() as baseline, CompletionServer(model=shorter) as candidate:
        found = certify(baseline, candidate)
    assert found.result.exit_code == 3
    assert "candidate differs from baseline at token 7: its end, not " in found.said


def test_which_server_is_asked_first_alternates(certify):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        found = certify(baseline, candidate)
    first = [row["method"] for row in read_samples(found.folder).to_pylist() if row["order_idx"] == 0]
    assert first.count("baseline") == first.count("candidate") == NUM_PROMPTS


def test_both_are_asked_the_same_greedily_and_streaming(certify):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        certify(baseline, candidate, concurrency=3)
    salts = [asked.body.pop("cache_salt") for asked in (*baseline.asked, *candidate.asked)]
    assert len(set(salts)) == len(salts)
    asked = [sorted(json.dumps(one.body, sort_keys=True) for one in server.asked) for server in (baseline, candidate)]
    assert asked[0] == asked[1]
    assert baseline.asked[0].body | {"prompt": ""} == {
        "model": "tiny",
        "prompt": "",
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def test_ids_that_lack_tokens_are_not_compared_but_their_texts_are(certify):
    with CompletionServer() as baseline, CompletionServer(leaves_out_ids=True) as candidate:
        found = certify(baseline, candidate)
    assert found.result.exit_code == 0, found.said
    assert "compared by text, not by token ids, where a side gave none: candidate on 20 of 20 outputs" in found.said


def test_servers_of_two_kinds_are_each_asked_in_their_way(certify):
    with CompletionServer("llama.cpp") as baseline, CompletionServer("sglang") as candidate:
        found = certify(baseline, candidate)
    assert found.result.exit_code == 0, found.said
    assert "compared by text" not in found.said


def test_the_kind_of_server_can_be_told(certify):
    models = [{"id": "tiny", "owned_by": "a proxy"}]
    with CompletionServer(models=models) as baseline, CompletionServer(models=models) as candidate:
        found = certify(baseline, candidate, server="vllm")
    assert found.result.exit_code == 0
    assert "compared by text" not in found.said


def test_the_tables_have_the_schemas_of_every_run(certify, prompts):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        found = certify(baseline, candidate)
    for name, schema in (("summary", SUMMARY), ("verify", VERIFY)):
        assert pq.read_schema(found.folder / f"{name}.parquet").remove_metadata() == schema
    parts = sorted((found.folder / "samples").glob("*.parquet"))
    assert len(parts) == NUM_PROMPTS
    assert pq.read_schema(parts[0]).remove_metadata() == SAMPLES
    assert found.run["provenance"]["data"]["jsonl"]["source"] == str(prompts)
    summary = pq.read_table(found.folder / "summary.parquet").to_pylist()
    assert [(row["method"], row["n"], row["num_prompts"]) for row in summary] == [
        ("baseline", 20, NUM_PROMPTS),
        ("candidate", 20, NUM_PROMPTS),
    ]
    assert summary[1]["speedup_geomean_low"] < summary[1]["speedup_geomean"] < summary[1]["speedup_geomean_high"]


def test_report_and_verify_judge_the_folder_again(certify, cli):
    with CompletionServer() as baseline, CompletionServer(model=changed_once_in(20)) as candidate:
        found = certify(baseline, candidate)
    for command in ("report", "verify"):
        again = cli(command, found.folder)
        assert again.exit_code == 3
        assert "verdict: not exact" in again.output
    (line,) = [line for line in cli("report", found.folder.parent).output.splitlines() if "candidate" in line]
    assert line.split()[:5] == ["run", "jsonl", "complete", str(NUM_PROMPTS), "candidate"]
    assert line.endswith(" 19/20")


def test_a_certification_is_scored_as_any_run_is(certify, cli, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "How many?", "answer": "Three. #### 3"}))
    with CompletionServer() as server:
        found = certify(server, server, task="gsm8k", data_file=rows)
    result = cli("score", found.folder)
    assert result.exit_code == 0, result.output
    scores = pq.read_table(found.folder / "scores.parquet").to_pylist()
    assert {(row["method"], row["metric"], row["score"]) for row in scores} == {
        (side, metric, 0.0) for side in ("baseline", "candidate") for metric in ("strict", "flexible")
    }
    assert cli("report", found.folder).exit_code == 0
