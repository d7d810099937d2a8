"""The text of an output while its tokens come: never half a character, and nothing that a stop string may yet take back."""

from collections.abc import Callable, Collection, Sequence

from adadecode.printable import UNDECODED
from adadecode.records import Piece
from adadecode.scoring.stops import until

WINDOW = 64  # tokens that are decoded together at most; about half of them are kept when more come


class TextIncrements:
    """Turns the tokens of one output into its text, piece by piece: all pieces together are what `decode_output` gives."""

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[str] = (), eos_token_ids: Collection[int] = ()
    ) -> None:
        """`decode` gives the text of tokens; `stops` end it, and tokens of `eos_token_ids` are no text of it."""
        self._decode, self._stops, self._eos = decode, tuple(stops), eos_token_ids
        self._token_ids, self._before = list[int](), ""  # the newest tokens, and the text before them
        self._num_said = 0  # characters that were handed out
        self._depth = 0

    def add(self, token_ids: Sequence[int], depths: Sequence[int]) -> list[Piece]:
        """What `token_ids`, the next of the output, make certain of its text, each with the depth that drafted it."""
        pieces: list[Piece] = []
        for token_id, depth in zip(token_ids, depths, strict=True):
            if token_id in self._eos:
                continue
            self._token_ids.append(token_id)
            self._depth = depth
            text = self._decode(self._token_ids)
            self._say(pieces, self._certain(self._before + text.rstrip(UNDECODED)))
            if len(self._token_ids) >= WINDOW:
                self._move_on(text)
        return pieces

    def end(self) -> list[Piece]:
        """What was held back of an output that is over."""
        pieces: list[Piece] = []
        if self._token_ids:
            self._say(pieces, until(self._before + self._decode(self._token_ids), self._stops))
        return pieces

    def _say(self, pieces: list[Piece], text: str) -> None:
        if len(text) > self._num_said:
            said = text[self._num_said :]
            if pieces and pieces[-1].depth == self._depth:
                said = pieces.pop().text + said
            pieces.append(Piece(said, self._depth))
            self._num_said = len(text)

    def _certain(self, text: str) -> str:
        """`text` up to a stop string in it, or up to what may be the beginning of one."""
        ended = until(text, self._stops)
        if len(ended) < len(text):
            return ended
        held = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(held, default=0)]

    def _move_on(self, text: str) -> None:
        """Forgets the oldest tokens, as many as half a window leaves, where the others decode to the end of `text`."""
        for num_kept in range(WINDOW // 2, len(self._token_ids)):
            kept = self._decode(self._token_ids[-num_kept:])
            if text.endswith(kept):  # not where it begins within a character
                self._before += text[: len(text) - len(kept)]
                del self._token_ids[:-num_kept]
                return
