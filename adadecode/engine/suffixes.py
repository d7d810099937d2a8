"""A suffix automaton that grows with a sequence and remembers how each context went on.

A state stands for the substrings that end at the same places; the link of a state is the longest of its suffixes that also
ends elsewhere (Blumer et al. 1985). So the link of the whole sequence is its longest suffix that stood in it before, at
any length, found in amortised constant time a token. Suffix decoding (arXiv 2411.04975) and SAM decoding (arXiv 2411.10666)
draft from such structures.
"""

from typing import NamedTuple

MOST_CONTEXTS = 24  # suffixes that learn how they went on, the longest first: a loop has as many as it has tokens
ROOT = 0
NEVER = -1  # no token


class Context(NamedTuple):
    """A suffix that occurs in the sequence: its state, and its length in tokens."""

    state: int
    length: int


class Continuation(NamedTuple):
    """How a context last went on, how often in a row it did so, and whether it ever went on otherwise."""

    token_id: int
    streak: int
    has_changed: bool


class Suffixes:
    """The contexts of one sequence."""

    def __init__(self) -> None:
        # flat lists: a token that comes touches some dozen states, and each object made for one would take as long
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._went_on = [NEVER]  # with which token, how often in a row, and whether ever otherwise
        self._streak = [0]
        self._has_changed = [False]
        self._whole = ROOT

    @property
    def newest(self) -> Context:
        """The longest suffix of the sequence that also stands elsewhere in it; of length 0 when none does."""
        state = max(self._link[self._whole], ROOT)
        return Context(state, self._length[state])

    def after(self, context: Context, token_id: int) -> Context:
        """The longest suffix of `context` and `token_id` together that occurs in the sequence."""
        state, length = context
        while (found := self._next[state].get(token_id)) is None:
            if state == ROOT:
                return Context(ROOT, 0)
            state = self._link[state]
            length = self._length[state]
        return Context(found, length + 1)

    def continuation(self, context: Context) -> tuple[int, Continuation] | None:
        """The longest suffix of `context` that went on, by its length, and how; None when none did."""
        state, length = context
        while state != ROOT:
            if (token_id := self._went_on[state]) != NEVER:
                return length, Continuation(token_id, self._streak[state], self._has_changed[state])
            state = self._link[state]
            length = self._length[state]
        return None

    def append(self, token_id: int) -> None:
        """Goes on with `token_id`."""
        self._learn(token_id)
        state, new = self._whole, self._add({}, self._length[self._whole] + 1)
        following, link = self._next, self._link
        while state != -1 and token_id not in following[state]:
            following[state][token_id] = new
            state = link[state]
        self._whole = new
        if state == -1:
            self._link[new] = ROOT
            return
        found = self._next[state][token_id]
        if self._length[found] != self._length[state] + 1:
            found = self._split(found, state, token_id)
        self._link[new] = found

    def _learn(self, token_id: int) -> None:
        state, link, went_on, streak = self._whole, self._link, self._went_on, self._streak
        for _ in range(MOST_CONTEXTS):
            if state <= ROOT:
                return
            if went_on[state] == token_id:
                streak[state] += 1
            else:
                self._has_changed[state] = went_on[state] != NEVER
                went_on[state], streak[state] = token_id, 1
            state = link[state]

    def _split(self, found: int, state: int, token_id: int) -> int:
        """The new state for the shorter substrings of `found`, which from now on end at one place more."""
        copy = self._add(dict(self._next[found]), self._length[state] + 1)
        self._went_on[copy], self._streak[copy] = self._went_on[found], self._streak[found]
        self._has_changed[copy] = self._has_changed[found]
        self._link[copy] = self._link[found]
        while state != -1 and self._next[state].get(token_id) == found:
            self._next[state][token_id] = copy
            state = self._link[state]
        self._link[found] = copy
        return copy

    def _add(self, following: dict[int, int], length: int) -> int:
        self._next.append(following)
        self._link.append(ROOT)
        self._length.append(length)
        self._went_on.append(NEVER)
        self._streak.append(0)
        self._has_changed.append(False)
        return len(self._next) - 1
