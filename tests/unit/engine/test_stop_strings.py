"""Stop strings: the same token ends the output whatever drafted, and its text is that of all tokens together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import OneExit, Policy
from adadecode.engine.stop_strings import WINDOW, StopScan, StopStrings
from adadecode.methods import METHODS
from tests.models import KERNELS, random_heads, tiny_model

PROMPT = [7, 8, 9] * 4
EOS = 96
# Bytes of é and of two emoji, pieces of words, line ends: what a tokenizer of bytes may split anywhere.
PIECES = [
    *dict.fromkeys(bytes([byte]) for byte in "é🙂🙃".encode()),
    *(b"Que", b"st", b"ion", b":", b"\n", b"\n\n", b" a", b"b", b"ab"),
]


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of as many tokens as the tiny model has, made of PIECES; its decoder is that of byte-level BPE."""
    signs = _signs_of_bytes()
    words = ["".join(signs[byte] for byte in piece) for piece in PIECES]
    vocab = {words[idx] if idx < len(words) else f"{words[idx % len(words)]}{idx}": idx for idx in range(97)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=words[0]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _signs_of_bytes() -> dict[int, str]:
    """The printable sign that byte-level BPE writes each byte as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + idx) for idx, byte in enumerate(others)}


def pieces_tokenizer() -> Tokenizer:
    """The same tokens as SentencePiece has them: a first space is left out, bytes are pieces of their own."""
    words = [f"<0x{piece[0]:02X}>" if piece[0] > 127 else piece.decode().replace(" ", "▁") for piece in PIECES]
    tokenizer = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token=words[0]))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


BYTES, SENTENCE_PIECES = byte_tokenizer(), pieces_tokenizer()


def decode_text(token_ids: list[int], tokenizer: Tokenizer = BYTES) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def scan_of(*strings: str, eos: tuple[int, ...] = ()) -> StopScan:
    return StopScan(StopStrings(strings, decode_text), eos)


def ids_of(*pieces: bytes) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def first_end(token_ids: list[int], strings: tuple[str, ...], tokenizer: Tokenizer = BYTES) -> int:
    """How many tokens it takes until the text of all of them has one of `strings`; their number where it never does."""
    for num in range(1, len(token_ids) + 1):
        text = decode_text(token_ids[:num], tokenizer).rstrip("\ufffd")
        if any(string in text for string in strings):
            return num
    return len(token_ids)


def test_a_stop_string_may_span_tokens_and_end_within_one():
    token_ids = ids_of(b" a", b"Que", b"st", b"ion", b":", b"b")
    assert scan_of("Question:").kept(token_ids) == token_ids[:5]
    assert scan_of("estio").kept(token_ids) == token_ids[:4]
    assert scan_of("a").kept(token_ids) == token_ids[:1]
    assert scan_of("question").kept(token_ids) == token_ids


def test_a_stop_string_ends_with_the_last_byte_of_its_last_character():
    smile, upside_down = ([bytes([byte]) for byte in sign.encode()] for sign in "🙂🙃")
    token_ids = ids_of(b" a", *smile, b"b")
    assert scan_of("🙂").kept(token_ids) == token_ids[:5]
    assert scan_of("a🙂b").kept(token_ids) == token_ids
    assert scan_of("🙃").kept(token_ids) == token_ids  # three of its four bytes are the same
    # a stop string before a character that is not whole yet is there already
    scan = scan_of("\n\n")
    assert scan.kept(ids_of(b"\n", b"\n", smile[0])) == ids_of(b"\n", b"\n")
    # bytes that are no character, in the middle
    token_ids = ids_of(smile[0], b" a", upside_down[1], b"ab", b"b")
    assert scan_of("ab").kept(token_ids) == token_ids[:4]


def test_an_eos_token_is_no_text():
    token_ids = ids_of(b"Que", b":")
    scan = scan_of(":", eos=(token_ids[1],))
    assert scan.kept(token_ids) == token_ids
    assert not scan.is_over


@settings(max_examples=200, deadline=None)
@given(
    tokenizer=st.sampled_from([BYTES, SENTENCE_PIECES]),
    token_ids=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=4 * WINDOW),
    strings=st.lists(st.text("a Question:b\né🙂🙃", min_size=1, max_size=3), min_size=1, max_size=3, unique=True).map(
        tuple
    ),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_it_ends_where_the_text_of_all_tokens_has_it_first_in_rounds_of_any_size(tokenizer, token_ids, strings, sizes):
    """The window over the newest tokens is a short cut and changes nothing, nor does how many come at once."""
    expected = token_ids[: first_end(token_ids, strings, tokenizer)]
    stops = StopStrings(strings, lambda ids: decode_text(ids, tokenizer))
    scan, output, start = StopScan(stops, ()), list[int](), 0
    for round_idx in range(len(token_ids)):
        if scan.is_over or start >= len(token_ids):
            break
        size = sizes[round_idx % len(sizes)]
        output += scan.kept(token_ids[start : start + size])
        start += size
    assert output == expected
    text = decode_text(output, tokenizer).rstrip("\ufffd")
    assert scan.is_over == any(string in text for string in strings)


def test_what_was_read_long_ago_is_forgotten():
    read: list[int] = []

    def counted(token_ids: list[int]) -> str:
        read.append(len(token_ids))
        return decode_text(token_ids)

    scan = StopScan(StopStrings(("zzz",), counted), ())
    scan.kept(ids_of(b"ab") * 1000)
    assert max(read) <= 2 * WINDOW


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(kernels=request.param, eos_token_id=EOS)


METHODS_THAT_OWE = ("vanilla", "adadecode", "ngram", "layerskip", "speculative")
METHODS_OF_OTHERS = ("transformers", "hf-prompt-lookup", "hf-early-exit")
POLICY = Policy((1, 2), (0.02, 0.02), 5, ngram=0.1, layerskip=OneExit(2, 4), draft_gamma=0.0)


def strings_in(text: str) -> list[str]:
    """Some texts of one to three characters that `text` has, and one that it has not."""
    found = {text[start : start + size] for start in range(0, len(text), 5) for size in (1, 2, 3)}
    return [*sorted(string for string in found if string and "\ufffd" not in string), "nowhere"]


def test_every_method_ends_at_the_same_token_with_the_same_bits(model):
    heads = random_heads(model, (1, 2))
    draft = model_of_another_seed()
    whole = generate(model, Request(PROMPT, 48, record_logits=True)).generation.output_token_ids
    num_cut_in_round = 0
    for string in strings_in(decode_text(list(whole)))[::3]:
        stops = StopStrings((string,), decode_text)
        request = Request(PROMPT, 48, record_logits=True, stops=stops)
        found = {name: decode(model, METHODS[name], request, POLICY, heads, draft) for name in METHODS_THAT_OWE}
        vanilla = found["vanilla"]
        num = first_end(list(whole), (string,))
        assert vanilla.generation.output_token_ids == whole[:num], string
        is_there = string in decode_text(list(whole[:num])).rstrip("\ufffd")
        assert vanilla.generation.finish_reason == ("stop" if is_there else "length"), string
        assert vanilla.logits is not None
        assert len(vanilla.logits) == num
        for name, other in found.items():
            assert other.generation.output_token_ids == vanilla.generation.output_token_ids, (name, string)
            assert other.generation.finish_reason == vanilla.generation.finish_reason, (name, string)
            assert other.logits is not None
            assert torch.equal(other.logits, vanilla.logits), (name, string)
            check_counts(other.generation)
            is_stopped = other.generation.finish_reason == "stop"
            num_cut_in_round += is_stopped and other.generation.num_drafted > other.generation.num_accepted
    assert num_cut_in_round > 0, "no method had drafted past a stop string: the test shows nothing"


def model_of_another_seed():
    return tiny_model(seed=3, kernels="eager")


def check_counts(generation) -> None:
    """What the tables are checked for: a token of the full model in every round, and one depth per token."""
    assert len(generation.draft_depths) == len(generation.output_token_ids)
    assert generation.draft_depths.count(4) == generation.num_rounds + 1
    assert generation.num_rounds + generation.num_accepted == len(generation.output_token_ids) - 1
    assert len(generation.step_gaps_s) == generation.num_rounds


@pytest.mark.parametrize("method", METHODS_OF_OTHERS)
def test_transformers_own_methods_are_cut_at_the_same_token(method):
    model = tiny_model(kernels="eager", eos_token_id=EOS)
    whole = list(generate(model, Request(PROMPT, 32)).generation.output_token_ids)
    for string in strings_in(decode_text(whole))[::3]:
        request = Request(PROMPT, 32, record_logits=True, stops=StopStrings((string,), decode_text))
        decoded = decode(model, METHODS[method], request, POLICY)
        expected = whole[: first_end(whole, (string,))]
        assert list(decoded.generation.output_token_ids) == expected, string
        is_there = string in decode_text(expected).rstrip("\ufffd")
        assert decoded.generation.finish_reason == ("stop" if is_there else "length")
        assert decoded.logits is not None
        assert len(decoded.logits) == len(expected)


def test_the_first_token_may_be_the_last(model):
    first = generate(model, Request(PROMPT, 1)).generation.output_token_ids
    for character in decode_text(list(first)).rstrip("\ufffd")[:1]:
        request = Request(PROMPT, 32, stops=StopStrings((character,), decode_text))
        generation = decode(model, METHODS["adadecode"], request, POLICY, random_heads(model, (1, 2))).generation
        assert (generation.output_token_ids, generation.finish_reason, generation.num_rounds) == (first, "stop", 0)
