"""How many tokens a shortlist has, for trained heads and for synthetic ones."""

LONGEST_SHORTLIST = 32_768


def default_shortlist_len(vocab_size: int) -> int:
    """K: a quarter of the vocabulary, at most 32 Ki tokens (FR-Spec's size for vocabularies of 128 Ki)."""
    return min(LONGEST_SHORTLIST, max(1, vocab_size // 4))
