"""Stop strings: where the text of an output ends it, decided on what its tokens decode to.

Which tokens are kept follows from the tokens alone, read one after the other: the first of them at which the text so far
has a stop string is the last. So every method that gives the same tokens ends at the same one, however far it drafted.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from adadecode.printable import UNDECODED

WINDOW = 32  # tokens that are decoded together at most; half of them are kept when more come


@dataclass(frozen=True)
class StopStrings:
    """Texts that end an output, and what tells the text of tokens."""

    strings: tuple[str, ...]
    decode: Callable[[list[int]], str]

    @classmethod
    def of(cls, strings: tuple[str, ...], tokenizer: Any) -> "StopStrings | None":
        """Those of outputs in the tokens of `tokenizer`; None where there are none."""
        return cls(strings, tokenizer.decode) if strings else None


class StopScan:
    """Reads one output token after token, until its text has a stop string; then it `is_over`.

    It holds the newest tokens, and of the text before them as much as a stop string that begins there may have.
    """

    def __init__(self, stops: StopStrings | None, eos_token_ids: Collection[int]) -> None:
        """Without `stops` it keeps all that it is shown. Tokens of `eos_token_ids` end the output and are no text of it."""
        self._stops, self._eos = stops, eos_token_ids
        self._token_ids, self._before = list[int](), ""
        self.is_over = False

    @property
    def looks(self) -> bool:
        """Whether there is anything to look for."""
        return self._stops is not None

    def kept(self, token_ids: list[int]) -> list[int]:
        """`token_ids`, the next of the output, up to the one that is its last."""
        if self._stops is None:
            return token_ids
        for idx, token_id in enumerate(token_ids):
            if self.is_over:
                return token_ids[:idx]
            if token_id not in self._eos:
                self._read(self._stops, token_id)
        return token_ids

    def _read(self, stops: StopStrings, token_id: int) -> None:
        self._token_ids.append(token_id)
        text = stops.decode(self._token_ids)
        # bytes of a character whose others are still to come decode to signs of no use, always at the end
        so_far = self._before + text.rstrip(UNDECODED)
        self.is_over = any(string in so_far for string in stops.strings)
        if len(self._token_ids) >= WINDOW and len(self._token_ids) % (WINDOW // 2) == 0:
            self._move_on(stops, text)

    def _move_on(self, stops: StopStrings, text: str) -> None:
        """Forgets the oldest tokens, as many as half a window leaves, where the others decode to the end of `text`."""
        for num_kept in range(WINDOW // 2, len(self._token_ids)):
            kept = stops.decode(self._token_ids[-num_kept:])
            if text.endswith(kept):  # not where it begins within a character
                longest = max(map(len, stops.strings))
                before = self._before + text[: len(text) - len(kept)]
                self._before = before[len(before) - min(len(before), longest - 1) :]
                del self._token_ids[:-num_kept]
                return
