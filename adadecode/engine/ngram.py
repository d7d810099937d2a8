"""The n-gram drafter: what followed the newest tokens when they last stood in this prompt or output.

Prompt lookup, as in transformers and vLLM: it runs no layers, so its drafts are parked at boundary 0. Unlike those it
looks at the last two occurrences: where they were followed by different tokens the match says nothing (20-40 % right on
the demo's outputs), where by the same token even a short match is worth a draft (75-100 %).
"""


class NgramDrafter:
    """An index of one sequence's n-grams by how they went on."""

    def __init__(self, shortest: int, longest: int) -> None:
        """Matches have up to `longest` tokens; one that occurred only once needs `shortest`."""
        assert 1 <= shortest <= longest, (shortest, longest)
        self._shortest, self._longest = shortest, longest
        self._tokens: list[int] = []
        # where the token after an n-gram's last occurrence stands, and whether it agrees with the one before (None: new)
        self._index: dict[tuple[int, ...], tuple[int, bool | None]] = {}

    def extend(self, token_ids: list[int]) -> None:
        """Adds verified tokens to the sequence."""
        tokens, index = self._tokens, self._index
        for token_id in token_ids:
            # an n-gram is indexed when its successor comes, so that none finds itself
            end = len(tokens)
            for start in range(max(0, end - self._longest), end):
                ngram = tuple(tokens[start:])
                before = index.get(ngram)
                agrees = None if before is None else tokens[before[0]] == token_id
                index[ngram] = (end, agrees)
            tokens.append(token_id)

    def propose(self, drafts: list[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` tokens to follow the sequence and the pending `drafts`, each by its longest match."""
        recent = self._tokens[-self._longest :] + drafts
        proposed: list[int] = []
        while len(proposed) < max_tokens:
            token_id = self._next(recent[-self._longest :])
            if token_id is None:
                break
            recent.append(token_id)
            proposed.append(token_id)
        return proposed

    def _next(self, recent: list[int]) -> int | None:
        for start in range(len(recent)):
            match = self._index.get(tuple(recent[start:]))
            if match is not None:
                position, agrees = match
                is_enough = len(recent) - start >= self._shortest if agrees is None else agrees
                return self._tokens[position] if is_enough else None
        return None
