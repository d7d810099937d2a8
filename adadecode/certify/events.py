"""Server-sent events: the data in a stream of bytes, and when it came."""

import re
import time
from collections.abc import Iterable, Iterator

from adadecode.certify.failures import BAD_ANSWER, ServerError

MAX_LINE_LEN = 16 * 2**20  # bytes of one line of a stream
LINE_END = re.compile(rb"\r\n|\r|\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def payloads(pieces: Iterable[bytes]) -> Iterator[tuple[str, float]]:
    """Yields the data of each server-sent event in `pieces` of a stream, and when it came, by `time.perf_counter`.

    The event `[DONE]` ends it. Source: the HTML standard, server-sent events. Raises ServerError for what is no text or has
    no end.
    """
    data = list[str]()
    for line, at_s in _lines(pieces):
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            payload, data = "\n".join(data), []
            if payload.strip() == "[DONE]":
                return
            yield payload, at_s


def _lines(pieces: Iterable[bytes]) -> Iterator[tuple[str, float]]:
    """The lines in `pieces`, each ended by a carriage return, a line feed or both, and when the end of each came."""
    rest, is_first, may_be_half = b"", True, False  # of a line end whose other half is in the next piece
    for piece in filter(None, pieces):
        at_s = time.perf_counter()
        content = piece.removeprefix(b"\n") if may_be_half else piece
        may_be_half = piece.endswith(b"\r")
        *lines, rest = LINE_END.split(rest + content)
        if len(rest) > MAX_LINE_LEN:
            raise ServerError(BAD_ANSWER, f"a line of the stream has more than {MAX_LINE_LEN} bytes")
        for line in lines:
            yield _text(line.removeprefix(BYTE_ORDER_MARK) if is_first else line), at_s
            is_first = False


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ServerError(BAD_ANSWER, "a line of the stream is no UTF-8") from None
