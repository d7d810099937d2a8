"""The n-gram drafter: what followed the last occurrence of the newest tokens in this prompt and output.

Prompt lookup, as in transformers and vLLM: it runs no layers, so its drafts are parked at boundary 0.
"""


class NgramDrafter:
    """An index of one sequence's n-grams of `shortest` to `longest` tokens, by where each last ended."""

    def __init__(self, shortest: int, longest: int) -> None:
        assert 1 <= shortest <= longest, (shortest, longest)
        self._lengths = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._continues_at: dict[tuple[int, ...], int] = {}

    def extend(self, token_ids: list[int]) -> None:
        """Adds verified tokens to the sequence."""
        for token_id in token_ids:
            # a token is indexed when its successor comes, so that no n-gram finds itself
            end = len(self._tokens)
            for length in self._lengths:
                if length <= end:
                    self._continues_at[tuple(self._tokens[end - length :])] = end
            self._tokens.append(token_id)

    def propose(self, drafts: list[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` tokens to follow the sequence and the pending `drafts`, by the longest match.

        As many as the match is long: a longer match is more often right for longer.
        """
        recent = self._tokens[-max(self._lengths) :] + drafts
        for length in self._lengths:
            start = self._continues_at.get(tuple(recent[-length:])) if length <= len(recent) else None
            if start is not None:
                return self._tokens[start : start + min(length, max_tokens)]
        return []
