"""One streamed completion: its events read, checked and put on the clock."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adadecode.certify.failures import BAD_ANSWER, SERVER_ERROR, TRUNCATED, ServerError
from adadecode.certify.servers import ServerKind
from adadecode.files import from_json
from adadecode.printable import on_one_line

MAX_LINE_LEN = 16 * 2**20  # bytes of one line of a stream
FINISH_REASONS = {"stop": "eos", "length": "length"}  # of OpenAI, and ours
MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class Completion:
    """What a server gave for one prompt, None where it does not say.

    `arrivals_s` are the seconds from the request to each chunk that had tokens, `ended_s` to the end of the output.
    `text_alone` says that ids came, but not one for each token that the server counts.
    """

    text: str
    finish_reason: str
    arrivals_s: tuple[float, ...]
    ended_s: float
    output_token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    output_len: int | None = None
    prompt_len: int | None = None
    num_drafted: int | None = None
    num_accepted: int | None = None
    text_alone: bool = False


class Reader:
    """Takes the chunks of one stream as they come; `completion` is what they were, once they have ended."""

    def __init__(self, kind: ServerKind, began_s: float) -> None:
        """`began_s` is when the request was sent, by `time.perf_counter`."""
        self._kind, self._began_s = kind, began_s
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._has_ids = False
        self._prompt_ids: tuple[int, ...] | None = None
        self._arrivals: list[float] = []
        self._finish: str | None = None
        self._ended_s = 0.0
        self._usage: dict[str, Any] = {}
        self._drafts: tuple[int | None, int | None] = (None, None)

    def take(self, payload: str, at_s: float) -> None:
        """Takes the data of one event that came `at_s`; raises ServerError where it is none of a completion."""
        try:
            chunk = from_json(payload)
        except ValueError:
            raise ServerError(BAD_ANSWER, f"an event is not JSON: {on_one_line(payload, 80)}") from None
        if not isinstance(chunk, dict):
            raise ServerError(BAD_ANSWER, f"an event is no JSON object: {on_one_line(payload, 80)}")
        if chunk.get("error") is not None:
            raise ServerError(SERVER_ERROR, f"the server says: {on_one_line(chunk['error'])}")
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        drafted, accepted = map(count_of, self._kind.drafts(chunk))
        self._drafts = self._drafts if drafted is None else (drafted, accepted)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise ServerError(BAD_ANSWER, f"an event has no choices: {on_one_line(payload, 80)}")
        for choice in choices[:1]:
            self._take_choice(choice, chunk, at_s)

    def _take_choice(self, choice: Any, chunk: dict[str, Any], at_s: float) -> None:
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(text, str):
            raise ServerError(BAD_ANSWER, f"a choice has no text: {on_one_line(choice, 80)}")
        ids = ids_of(self._kind.ids(choice, chunk))
        if (prompt_ids := ids_of(self._kind.prompt_ids(choice, chunk))) is not None:
            self._prompt_ids = tuple(prompt_ids)
        self._has_ids = self._has_ids or ids is not None
        self._texts.append(text)
        self._ids += ids or []
        if text or ids:
            self._arrivals.append(at_s - self._began_s)
        if (finish := choice.get("finish_reason")) is not None:
            if not isinstance(finish, str) or finish not in FINISH_REASONS:
                raise ServerError(BAD_ANSWER, f"an output ended by {on_one_line(finish, 40)!r}, not by stop or length")
            self._finish, self._ended_s = FINISH_REASONS[finish], at_s - self._began_s

    def completion(self) -> Completion:
        """What the stream was; raises ServerError where it ended before the output did."""
        if self._finish is None:
            raise ServerError(TRUNCATED, f"the stream ended after {len(self._arrivals)} chunks, before the output did")
        counted, num_ids = count_of(self._usage.get("completion_tokens")), len(self._ids)
        # a server may leave the end-of-sequence token out of the ids
        has_all = self._has_ids and (counted is None or num_ids in (counted, counted - 1))
        return Completion(
            text="".join(self._texts),
            finish_reason=self._finish,
            arrivals_s=tuple(self._arrivals),
            ended_s=self._ended_s,
            output_token_ids=tuple(self._ids) if has_all else None,
            prompt_token_ids=self._prompt_ids,
            output_len=num_ids if has_all else counted,
            prompt_len=count_of(self._usage.get("prompt_tokens")),
            num_drafted=self._drafts[0],
            num_accepted=self._drafts[1],
            text_alone=self._has_ids and not has_all,
        )


def payloads(pieces: Iterable[bytes]) -> Iterator[tuple[str, float]]:
    """Yields the data of each server-sent event in `pieces` of a stream, and when it came, by `time.perf_counter`.

    The event `[DONE]` ends it. Source: the HTML standard, server-sent events; a line ends at a line feed, after a carriage
    return or not. Raises ServerError for what is no text or has no end.
    """
    rest, data = b"", list[str]()
    for piece in pieces:
        at_s = time.perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE_LEN:
            raise ServerError(BAD_ANSWER, f"a line of the stream has more than {MAX_LINE_LEN} bytes")
        for line in map(_text, lines):
            if line.startswith("data:"):
                data.append(line.removeprefix("data:").removeprefix(" "))
            elif not line and data:
                payload, data = "\n".join(data), []
                if payload.strip() == "[DONE]":
                    return
                yield payload, at_s


def _text(line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ServerError(BAD_ANSWER, "a line of the stream is no UTF-8") from None


def ids_of(found: object) -> list[int] | None:
    """The token ids in `found`, None where there are none; raises ServerError where it holds something else."""
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(part) is int and 0 <= part <= MAX_TOKEN_ID for part in found):
        raise ServerError(BAD_ANSWER, f"token ids are no list of numbers: {on_one_line(found, 80)}")
    return found


def count_of(found: object) -> int | None:
    """`found` as a count, None where it is none."""
    return found if type(found) is int and 0 <= found <= MAX_TOKEN_ID else None
