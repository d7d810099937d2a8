"""One streamed completion: its chunks read, checked and put on the clock."""

from dataclasses import dataclass
from typing import Any

from adadecode.certify.failures import BAD_ANSWER, SERVER_ERROR, TRUNCATED, ServerError
from adadecode.certify.request import Request
from adadecode.files import from_json

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

    def __init__(self, request: Request, began_s: float) -> None:
        """`began_s` is when the request was sent, by `time.perf_counter`."""
        self._request, self._began_s = request, began_s
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
            raise ServerError(BAD_ANSWER, "an event is not JSON", said=payload) from None
        if not isinstance(chunk, dict):
            raise ServerError(BAD_ANSWER, "an event is no JSON object", said=payload)
        if chunk.get("error") is not None:
            raise ServerError(SERVER_ERROR, "the server says", said=chunk["error"])
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        drafted, accepted = map(count_of, self._request.kind.drafts(chunk))
        self._drafts = self._drafts if drafted is None else (drafted, accepted)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise ServerError(BAD_ANSWER, "an event has no choices", said=payload)
        choice = choices[0] if choices else {}
        text = self._request.api.text(choice) if isinstance(choice, dict) and choices else ""
        if not isinstance(choice, dict) or not isinstance(text, str):
            raise ServerError(BAD_ANSWER, "a choice has no text", said=choice)
        num_ids = self._take_ids(choice, chunk)
        self._texts.append(text)
        if text or (num_ids and choices):  # ids alone, beside no choice, tell of tokens that came before
            self._arrivals.append(at_s - self._began_s)
        self._take_end(choice, at_s)

    def _take_ids(self, choice: dict[str, Any], chunk: dict[str, Any]) -> int:
        """Takes the ids in a chunk; returns how many of them are the output's."""
        extension = self._request.extension
        if (prompt_ids := ids_of(extension.prompt_ids(choice, chunk))) is not None:
            self._prompt_ids = tuple(prompt_ids)
        ids = ids_of(extension.ids(choice, chunk))
        self._has_ids = self._has_ids or ids is not None
        self._ids += ids or []
        self._check_len(len(self._ids))
        return len(ids or [])

    def _check_len(self, num_tokens: int) -> None:
        """Raises ServerError for more tokens than were asked for."""
        if num_tokens > self._request.max_new_tokens:
            raise ServerError(
                BAD_ANSWER, f"{num_tokens} tokens came where at most {self._request.max_new_tokens} were asked for"
            )

    def _take_end(self, choice: dict[str, Any], at_s: float) -> None:
        """Takes how the output ended, where a choice says so."""
        if (finish := choice.get("finish_reason")) is not None:
            if not isinstance(finish, str) or finish not in FINISH_REASONS:
                raise ServerError(BAD_ANSWER, "an output ended neither by stop nor by length", said=finish)
            self._finish, self._ended_s = FINISH_REASONS[finish], at_s - self._began_s

    def completion(self) -> Completion:
        """What the stream was; raises ServerError where it ended before the output did."""
        if self._finish is None:
            raise ServerError(TRUNCATED, f"the stream ended after {len(self._arrivals)} chunks, before the output did")
        counted, num_ids = count_of(self._usage.get("completion_tokens")), len(self._ids)
        self._check_len(counted or 0)
        left_out = 1 if self._finish == "eos" else 0  # a server may leave the end-of-sequence token out of the ids
        has_all = self._has_ids and (counted is None or counted - left_out <= num_ids <= counted)
        return Completion(
            text=whole_text(self._texts),
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


def whole_text(parts: list[str]) -> str:
    """`parts` together, halves of surrogate pairs joined; raises ServerError where one is left, which no file takes."""
    try:
        return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ServerError(BAD_ANSWER, "the text has half of a surrogate pair") from None


def ids_of(found: object) -> list[int] | None:
    """The token ids in `found`, None where there are none; raises ServerError where it holds something else."""
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(part) is int and 0 <= part <= MAX_TOKEN_ID for part in found):
        raise ServerError(BAD_ANSWER, "token ids are no list of numbers in their range", said=found)
    return found


def count_of(found: object) -> int | None:
    """`found` as a count, None where it is none."""
    return found if type(found) is int and 0 <= found <= MAX_TOKEN_ID else None
