"""The text of an output while its tokens come is that of the whole, and nothing of it is taken back."""

from hypothesis import given
from hypothesis import strategies as st

from adadecode.scoring.stops import until
from adadecode.tasks.increments import TextIncrements

TEXT = "a é 漢字 👩‍👩‍👧 ab\n\nabc"


def decode_bytes(token_ids: list[int]) -> str:
    """A tokenizer of bytes: a character is several tokens, and half of one decodes to U+FFFD."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def said(data: bytes, stops: tuple[str, ...], sizes: list[int]) -> str:
    text, pieces, at = TextIncrements(decode_bytes, stops), [], 0
    for size in [*sizes, len(data)]:
        part = list(data[at : at + size])
        new = text.add(part, [at] * len(part))
        assert not any("\ufffd" in piece.text[-1:] for piece in new), "half a character"
        pieces += new
        at += size
    return "".join(piece.text for piece in [*pieces, *text.end()])


@given(st.text(alphabet=TEXT, max_size=120), st.lists(st.integers(1, 5), max_size=30))
def test_the_pieces_are_the_text(text, sizes):
    assert said(text.encode(), (), sizes) == text


@given(st.text(alphabet="ab\n", max_size=150), st.sampled_from([("\n\n",), ("ab\na", "bb"), ("aab",)]))
def test_nothing_of_a_stop_string_or_past_it_is_said(text, stops):
    assert said(text.encode(), stops, []) == until(text, stops)


def test_a_character_that_never_ends_is_said_at_the_end():
    text = TextIncrements(decode_bytes)
    assert text.add([97, 0xE6], [4, 2]) == [("a", 4)]
    assert text.end() == [("\ufffd", 2)]


def test_an_end_of_sequence_is_no_text_and_pieces_know_their_depth():
    text = TextIncrements(decode_bytes, (), {0})
    assert text.add([97, 98, 99, 0], [1, 1, 4, 4]) == [("ab", 1), ("c", 4)]
    assert text.end() == []
