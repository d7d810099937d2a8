"""One stream read: wherever it is cut, whatever is in it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadecode.certify import events, stream
from adadecode.certify.apis import APIS
from adadecode.certify.events import payloads
from adadecode.certify.failures import ServerError
from adadecode.certify.request import Request
from adadecode.certify.servers import OTHER, SERVERS, kind_of
from adadecode.certify.stream import Reader
from adadecode.records import Example
from adadecode.settings import ApiName


def read(*chunks: object, kind: str = "vllm", api: ApiName = "completions") -> stream.Completion:
    reader = Reader(Request(APIS[api], SERVERS[kind], "tiny", Example("a", "b", "b"), 8), 10.0)
    for idx, chunk in enumerate(chunks):
        reader.take(chunk if isinstance(chunk, str) else json.dumps(chunk), 11.0 + idx)
    return reader.completion()


def chunk(text: str = "", ids: object = None, finish: object = None, **more: object) -> dict:
    return {"choices": [{"text": text, "token_ids": ids, "finish_reason": finish}], **more}


LINE_ENDS = [b"\n", b"\r\n", b"\r"]
EVENTS = ["a", '{"text": "line\u2028separator \x85 é 漢"}', "", "two\nlines"]
STREAM = "".join("".join(f"data: {line}\n" for line in event.split("\n")) + "\n" for event in EVENTS).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from(LINE_ENDS))
def test_events_are_the_same_wherever_the_stream_is_cut_and_however_lines_end(cuts, line_end):
    content = STREAM.replace(b"\n", line_end)
    ends = [0, *sorted(cuts), len(content)]
    pieces = [content[start:end] for start, end in pairwise(ends)]
    assert [payload for payload, _ in payloads(pieces)] == EVENTS


def test_comments_other_fields_and_what_follows_done_are_no_events():
    content = b": comment\n\nevent: x\nid: 3\ndata:one\n\nretry: 5\n\ndata: [DONE]\n\ndata: late\n\n"
    assert [payload for payload, _ in payloads([content])] == ["one"]


def test_a_line_without_end_or_that_is_no_text_is_a_bad_answer(monkeypatch):
    monkeypatch.setattr(events, "MAX_LINE_LEN", 100)
    with pytest.raises(ServerError, match="more than 100 bytes"):
        list(payloads([b"x" * 99, b"y" * 2]))
    with pytest.raises(ServerError, match="no UTF-8"):
        list(payloads([b"data: \xff\n\n"]))


def test_times_are_those_of_chunks_with_tokens():
    found = read(chunk(), chunk("a", [1]), chunk("", [2, 3]), chunk("", [], "stop"), {"choices": []})
    assert (found.text, found.output_token_ids, found.finish_reason) == ("a", (1, 2, 3), "eos")
    assert (found.arrivals_s, found.ended_s) == ((2.0, 3.0), 4.0)


def test_an_end_of_sequence_token_may_be_counted_and_left_out():
    usage = {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 7}}
    found = read(chunk("a", [1]), chunk("b", [2], "stop"), usage)
    assert (found.output_token_ids, found.output_len, found.prompt_len) == ((1, 2), 2, 7)
    short = read(chunk("ab", [1], "stop"), usage)
    assert (short.output_token_ids, short.output_len, short.text_alone) == (None, 3, True)
    long = read(chunk("a", [1]), chunk("b", [2], "length"), usage)  # it did not end by such a token
    assert (long.output_token_ids, long.output_len, long.text_alone) == (None, 3, True)


def test_halves_of_a_surrogate_pair_in_two_chunks_are_one_character():
    first, second = '{"choices": [{"text": "\\ud83d"}]}', '{"choices": [{"text": "\\ude00", "finish_reason": "stop"}]}'
    assert read(first, second).text == "\N{GRINNING FACE}"
    with pytest.raises(ServerError, match="half of a surrogate pair"):
        read(second)


def test_a_byte_order_mark_and_fields_without_a_colon_are_read_as_the_standard_says():
    assert [payload for payload, _ in payloads([b"\xef\xbb", b"\xbfdata:a\r", b"", b"\ndata\r", b"\r"])] == ["a\n"]


def test_more_tokens_than_were_asked_for_are_a_bad_answer_by_ids_or_by_the_count():
    many = {"choices": [], "usage": {"completion_tokens": 9}}
    for chunks in ([chunk("a", list(range(9)), "length")], [chunk("a", None, "length"), many]):
        with pytest.raises(ServerError, match="9 tokens came where at most 8 were asked for"):
            read(*chunks)


def test_what_a_server_does_not_say_is_none():
    found = read(chunk("a", None, "length"))
    assert (found.output_token_ids, found.output_len, found.prompt_len, found.num_drafted) == (None,) * 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "an event is not JSON: {"),
        ("[1]", "an event is no JSON object"),
        ({"choices": "x"}, "an event has no choices"),
        ({"id": 1}, "an event has no choices"),
        ({"choices": [3]}, "a choice has no text: 3"),
        (chunk("a", [1, "2"]), "token ids are no list of numbers"),
        (chunk("a", [-1]), "token ids are no list of numbers"),
        (chunk("a", [True]), "token ids are no list of numbers"),
        (chunk("a", [1], "abort"), "an output ended neither by stop nor by length: abort"),
        (chunk("a", [1], ["stop"]), "an output ended neither by stop nor by length: ['stop']"),
        ({"error": "out of memory", "choices": []}, "the server says: out of memory"),
        ("[" * 100_000, "an event is not JSON"),
    ],
)
def test_what_is_no_completion_is_named(bad, message):
    with pytest.raises(ServerError) as caught:
        read(chunk("a", [1]), bad)
    assert str(caught.value).startswith(message)


def test_a_stream_that_ends_before_the_output_is_an_error():
    with pytest.raises(ServerError, match="ended after 1 chunks, before the output did"):
        read(chunk("a", [1]))


def test_a_kind_of_server_is_known_by_who_owns_its_models():
    assert [kind_of(row.owned_by).name for row in SERVERS.values()] == list(SERVERS)
    assert [kind_of(name) for name in ("openai", None, 3, ["vllm"])] == [OTHER] * 4
