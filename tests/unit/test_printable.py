"""Text that is shown cannot send commands to a terminal, forge a line or turn a text round."""

import sys
import unicodedata

import pytest

from adadecode.printable import is_unicode, on_one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold] \\n text", "plain [bold] \\n text"),
        ("Ünïcode 日本 👩‍🚀 نص", "Ünïcode 日本 👩‍🚀 نص"),
        ("a\nparity 2/2", "a\\nparity 2/2"),
        ("\r\x1b[2K\x07\x9b31m", "\\r\\x1b[2K\\x07\\x9b31m"),
        ("a\u2028b\x85c\x0bd", "a\\u2028b\\x85c\\x0bd"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("a\u200eb\u200fc\u061cd", "a\\u200eb\\u200fc\\u061cd"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_heed_is_shown_as_its_escape(text, shown):
    assert printable(text) == shown


def test_what_is_printable_is_one_line_and_can_be_encoded_whatever_it_was_made_of():
    everything = printable("".join(map(chr, range(sys.maxunicode + 1))))
    assert len(everything.splitlines()) == 1
    assert is_unicode(everything)
    assert {unicodedata.category(character) for character in everything} & {"Cc", "Cs", "Zl", "Zp"} == set()


def test_line_breaks_that_are_to_be_kept_are_kept():
    assert printable("a\n\tb\r\x1b", keep="\n\t") == "a\n\tb\\r\\x1b"


def test_what_an_error_says_holds_nothing_invisible():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert on_one_line(everything, 10**8).isprintable()
    assert on_one_line("version '\u00ad1\u200b'\n at\u00a0line 1") == "version '\\xad1\\u200b' at line 1"


def test_half_of_a_surrogate_pair_is_no_unicode():
    assert is_unicode("😀\0")
    assert not is_unicode("\ud83d")
