"""Servers asked by chat completions: what they are sent, how their streams are read, and what is compared."""

import json

import pytest

from adadecode.certify.failures import ServerError
from adadecode.runs.folder import read_samples
from tests.completion_server import Asked, CompletionServer, text_of, tokens_of
from tests.unit.certify.conftest import NUM_PROMPTS
from tests.unit.certify.test_stream import read

GIVES_IDS = {"llama.cpp": False, "vllm": True, "sglang": True, "other": False}


@pytest.mark.parametrize("kind", GIVES_IDS)
def test_a_chat_server_that_gives_the_baselines_outputs_is_exact(kind, certify):
    with CompletionServer(kind) as baseline, CompletionServer(kind) as candidate:
        found = certify(baseline, candidate, api="chat")
    assert found.result.exit_code == 0, found.said
    assert "verdict: exact" in found.said
    assert ("compared by text, not by token ids" in found.said) == (not GIVES_IDS[kind])
    assert ("its /v1/chat/completions gives no token ids: texts are compared" in found.said) == (not GIVES_IDS[kind])
    rows = read_samples(found.folder).to_pylist()
    assert len(rows) == NUM_PROMPTS * 2 * 2
    for row in rows:
        ids = tokens_of(f"user: prompt {int(row['sample_id'])}\n", 8)
        assert row["output_token_ids"] == (ids if GIVES_IDS[kind] else None)
        assert (row["output_text"], row["output_len"]) == ("".join(map(text_of, ids)), 8)
        assert (len(row["step_gaps_s"]), row["finish_reason"]) == (7, "length")


def test_one_changed_token_of_a_chat_is_found(certify, tmp_path):
    def model(asked: Asked) -> list[int]:
        ids = tokens_of(asked.prompt, asked.body["max_tokens"])
        return ids if asked.number != 9 else [*ids[:3], ids[3] + 1, *ids[4:]]

    for kind, where in (("sglang", "at token 3: "), ("other", "at character ")):
        with CompletionServer(kind) as baseline, CompletionServer(kind, model=model) as candidate:
            found = certify(baseline, candidate, api="chat", out=tmp_path / kind)
        assert found.result.exit_code == 3, found.said
        assert f"candidate differs from baseline {where}" in found.said


def test_a_conversation_is_sent_as_it_is_and_a_system_prompt_before_it(certify, tmp_path):
    said = [("user", "Rhyme."), ("assistant", "On what?"), ("user", "A cat.")]
    messages = [{"role": role, "content": content} for role, content in said]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": messages[:1]}))
    with CompletionServer() as server:
        found = certify(server, server, api="chat", data_file=rows, system_prompt="Be short.")
    assert found.result.exit_code == 0, found.said
    first, second = (asked.body for asked in (server.asked[0], server.asked[-1]))
    system = {"role": "system", "content": "Be short."}
    assert first["messages"] == [system, *messages]
    assert second["messages"] == [system, messages[0]]
    assert "prompt" not in first
    asked = {name: value for name, value in first.items() if name not in ("messages", "cache_salt")}
    assert asked == {
        "model": "tiny",
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def test_a_server_that_has_chat_completions_alone_is_certified_by_them_and_otherwise_the_flag_is_named(
    certify, tmp_path
):
    with CompletionServer(paths=("/v1/chat/completions",)) as server:
        found = certify(server, server, max_errors="0")
        assert found.result.exit_code == 1
        (message, *_) = {row["error_message"] for row in read_samples(found.folder).to_pylist()}
        assert message.startswith("status 404 (a server that has chat completions alone is asked by --api chat): ")
        assert certify(server, server, api="chat", out=tmp_path / "chat").result.exit_code == 0


def chunk(delta: object, finish: str | None = None, **more: object) -> dict:
    return {"choices": [{"delta": delta, "finish_reason": finish}], **more}


def test_a_role_alone_and_empty_contents_are_no_tokens():
    found = read(
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=[5, 6]),
        chunk({"content": None}),
        chunk({"content": "a"}),
        chunk({"content": ""}),
        chunk({}, "stop"),
        {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 9}},
        api="chat",
    )
    assert (found.text, found.finish_reason, found.arrivals_s, found.ended_s) == ("a", "eos", (3.0,), 5.0)
    assert (found.prompt_token_ids, found.output_token_ids, found.output_len) == ((5, 6), None, 2)


def test_thoughts_are_text_that_is_compared_by_whichever_name_they_have():
    thoughts = [
        chunk({"reasoning_content": "hm", "reasoning": "hm"}),
        chunk({"reasoning": "m"}),
        chunk({"reasoning_content": None, "content": "yes"}, "stop"),
    ]
    assert read(*thoughts, api="chat").text == "hmmyes"


def test_ids_after_the_end_are_the_outputs_and_no_arrival():
    ids = {"choices": [], "sglext": {"output_ids": [[1, 2]], "input_ids": [7]}}
    found = read(chunk({"content": "ab"}), chunk({}, "length"), ids, kind="sglang", api="chat")
    assert (found.output_token_ids, found.prompt_token_ids, found.arrivals_s) == ((1, 2), (7,), (1.0,))


@pytest.mark.parametrize(
    "delta", [None, "text", {"content": 3}, {"reasoning": ["a"]}, {"tool_calls": [{"index": 0}], "content": None}]
)
def test_a_delta_that_is_no_text_is_a_bad_answer(delta):
    with pytest.raises(ServerError, match="a choice has no text: "):
        read(chunk(delta), api="chat")
