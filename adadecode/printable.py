"""Text from data, models and machines as a terminal may show it: it forges no line and sends no command.

What is stored keeps its characters; only what is shown is escaped.
"""

import re

# Control characters, line and paragraph separators, what changes the direction of writing, halves of surrogate pairs
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

UNDECODED = "\ufffd"  # what bytes decode to that are no character, or not all of one

# Up to the last @ of the host's part, as a password may have one too; taken for a path, a URL has one slash
USER_OF_URL = re.compile(r"(?:(?<=://)|(?<=:/))[^/\s]*@")


def printable(text: str, keep: str = "") -> str:
    r"""`text` on one line: what is not to be sent to a terminal becomes its escape, such as `\n` or `\x1b`.

    The characters in `keep` stay as they are.
    """
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def on_one_line(said: object, max_len: int = 200) -> str:
    """What an error or another program `said`, on one line of at most `max_len` characters, none of them invisible.

    So names that differ look different, where a model's text (`printable`) keeps what joins its letters and emoji.
    """
    words = " ".join((str(said) or repr(said)).split())
    line = "".join(character if character.isprintable() else _escaped(character) for character in words)
    return line if len(line) <= max_len else line[: max_len - 3] + "..."


def without_password(text: str) -> str:
    """`text`, a URL or a line with URLs, without the user names and passwords before their hosts."""
    return USER_OF_URL.sub("HIDDEN@", text)


def has_password(text: str) -> bool:
    """Whether `text` has a URL with a user name or a password before its host."""
    return USER_OF_URL.search(text) is not None


def is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON and a terminal's bytes may hold: no file or tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
