"""The n-gram drafter: what it proposes, and the rounds that start with its proposals."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.ngram import MOST_LENGTH, MOST_STREAK, NgramDrafter, confidence_of
from adadecode.engine.policy import Policy
from adadecode.engine.tally import Decoded
from tests.models import KERNELS, ScriptedExitHead, tiny_model

PROMPT = [11, 12, 13]
FIRST = len(PROMPT)
EXITS = (1, 2, 3)


def tokens(proposals: list[tuple[int, float]]) -> list[int]:
    return [token_id for token_id, _ in proposals]


def after(gamma: float, token_ids: list[int], drafts: tuple[int, ...] = (), max_tokens: int = 9):
    """What a drafter proposes once it has seen `token_ids`, with `drafts` pending."""
    drafter = NgramDrafter(gamma)
    drafter.extend(token_ids)
    return tokens(drafter.chain(list(drafts), max_tokens))


def test_the_longest_match_wins_over_a_later_shorter_one():
    assert after(0.0, [1, 2, 7, 5, 2, 8, 9, 1, 2], max_tokens=1) == [7]
    assert after(0.0, [3, 2, 7, 5, 2, 8, 9, 1, 2], max_tokens=1) == [8]


def test_a_proposal_goes_on_as_the_sequence_did_to_the_newest_token():
    assert after(0.0, [1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5, 1, 2, 3, 4, 5, 1], "round and round, as a loop does"
    assert after(0.0, [1, 2, 3, 4, 9, 1, 2], max_tokens=2) == [3, 4]


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2, 3], [2, 1, 4, 3]])
def test_without_an_earlier_occurrence_nothing_is_proposed(token_ids):
    """The newest tokens do not match themselves."""
    assert after(0.0, token_ids) == []


def test_confidence_grows_with_the_match_and_its_streak_and_falls_when_it_went_on_otherwise():
    for length, streak, has_changed in itertools.product((1, 2, 7, MOST_LENGTH), (1, 2, MOST_STREAK), (False, True)):
        confidence = confidence_of(length, streak, has_changed)
        assert 0.0 < confidence < 1.0
        assert confidence_of(length + 1, streak, has_changed) > confidence
        assert confidence_of(length, streak + 1, has_changed) > confidence
        assert confidence_of(length, streak, False) >= confidence


@pytest.mark.parametrize(
    ("token_ids", "seen"),
    [
        ([5, 1, 9, 4, 1], (1, 1, False)),
        ([5, 3, 1, 9, 4, 3, 1], (2, 1, False)),
        ([1, 9, 4, 1, 9, 6, 1], (1, 2, False)),
        ([1, 9, 4, 1, 9, 6, 1, 9, 7, 1], (1, 3, False)),
        ([1, 9, 4, 1, 9, 6, 1, 9, 7, 1, 9, 8, 1], (1, 4, False)),
        ([1, 8, 4, 1, 9, 6, 1], (1, 1, True)),
        ([1, 8, 4, 1, 9, 6, 1, 9, 7, 1], (1, 2, True)),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8], (8, 1, False)),
        ([*range(10, 50), 9, 3, *range(10, 50)], (MOST_LENGTH, 1, False)),
        ([1, 9] * 3 + [4, 1, 9] * 20 + [4, 1], (MOST_LENGTH, 1, False)),
    ],
)
def test_a_proposal_is_made_when_its_confidence_exceeds_gamma(token_ids, seen):
    confidence = confidence_of(*seen)
    assert after(confidence - 1e-9, token_ids, max_tokens=1) == [9]
    assert after(confidence, token_ids, max_tokens=1) == []


def test_a_chain_of_proposals_ends_where_all_of_them_together_are_too_unsure():
    once, chained = confidence_of(1, 1, False), confidence_of(2, 1, False)
    token_ids = [1, 2, 3, 4, 5, 1]
    assert after(once * chained - 1e-9, token_ids) == [2, 3]
    assert after(once * chained, token_ids) == [2]


def test_pending_drafts_are_part_of_what_is_matched():
    token_ids = [1, 2, 3, 4, 9, 1]
    assert after(0.0, token_ids, drafts=(2,), max_tokens=2) == [3, 4]
    assert after(0.0, token_ids, drafts=(2, 3), max_tokens=3) == [4, 9, 1]
    assert after(0.0, token_ids, drafts=(7,)) == []


def test_pending_drafts_are_not_remembered():
    drafter = NgramDrafter(0.0)
    drafter.extend([1, 2])
    assert drafter.chain([7, 8, 7], 5) == []
    drafter.extend([7])
    assert drafter.chain([], 5) == []


def next_by_search(token_ids: list[int], context: list[int]) -> tuple[int, float] | None:
    """The next token and its confidence by looking through the whole sequence: no index."""
    for length in range(len(context), 0, -1):
        ends = [e for e in range(length, len(token_ids)) if token_ids[e - length : e] == context[-length:]]
        if ends:
            followed_by = [token_ids[end] for end in ends]
            streak = len(ends)
            while set(followed_by[-streak:]) != {followed_by[-1]}:
                streak -= 1
            return followed_by[-1], confidence_of(length, streak, streak < len(ends))
    return None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=3),  # short: each suffix learns
    drafts=st.lists(st.integers(0, 3), max_size=3),
    gamma=st.floats(0.0, 0.9),
)
def test_the_index_finds_what_a_search_finds_however_the_tokens_came(pieces, drafts, gamma):
    drafter = NgramDrafter(gamma)
    for piece in pieces:
        drafter.extend(piece)
    token_ids = list(itertools.chain(*pieces))
    expected, sureness, confidence = [], [], 1.0
    while len(expected) < 5:
        found = next_by_search(token_ids, token_ids + drafts + expected)
        if found is None:
            break
        confidence *= found[1]
        if confidence <= gamma:
            break
        expected.append(found[0])
        sureness.append(confidence)
    assert drafter.chain(drafts, 5) == list(zip(expected, sureness, strict=True))
    assert drafter.successor() == next_by_search(token_ids, token_ids)


class ScriptedNgrams:
    """A drafter at boundary 0 that proposes exactly what `script` says: position of the newest token -> tokens after it."""

    boundary = 0
    gamma = 0.5
    tests = ()

    def __init__(self, script: dict[int, list[int]]) -> None:
        self.script, self.verified = script, []
        self.rooms: list[int] = []

    def extend(self, token_ids: list[int]) -> None:
        self.verified += token_ids

    def propose(self, step, round_, segment, first_tested) -> list[tuple[int, float]]:
        assert round_.room > 0
        assert segment.start == segment.stop == 0, "no layers are run"
        assert first_tested == round_.current
        self.rooms.append(round_.room)
        newest = len(self.verified) + round_.num_drafts - 1
        return [(token_id, 0.9) for token_id in self.script.get(newest, [])[: round_.room]]


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(num_layers=4, kernels=request.param)


@pytest.fixture(scope="module")
def vanilla(model) -> Decoded:
    return generate(model, Request(PROMPT, 24, (), record_logits=True))


def right_after(vanilla: Decoded, position: int, num_tokens: int = 1) -> list[int]:
    """The tokens vanilla emits after `position`."""
    start = position - FIRST + 1
    return list(vanilla.generation.output_token_ids[start : start + num_tokens])


@pytest.fixture
def decode(model):
    """Decodes with scripted n-grams and scripted heads."""

    def decode(
        ngrams: ScriptedNgrams, heads: dict | None = None, *, max_new_tokens=24, max_drafts=5, eos=()
    ) -> Decoded:
        policy = Policy(EXITS if heads else (), (0.5,) * 3 if heads else (), max_drafts, ngram=0.5)
        drafters = [ngrams, *ScriptedExitHead(policy.exits, heads or {}).drafters()]
        return generate(model, Request(PROMPT, max_new_tokens, eos, record_logits=True), policy, drafters)

    return decode


def assert_vanillas(result: Decoded, vanilla: Decoded) -> None:
    num_tokens = len(result.generation.output_token_ids)
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids[:num_tokens]
    assert torch.equal(result.logits, vanilla.logits[:num_tokens])


def test_right_ngram_drafts_share_one_pass_through_all_layers(decode, vanilla):
    result = decode(ScriptedNgrams({FIRST: right_after(vanilla, FIRST, 3)}), max_new_tokens=5)
    generation = result.generation
    assert_vanillas(result, vanilla)
    assert generation.num_rounds == 1
    assert generation.layers_run == 4
    assert generation.draft_depths == (4, 0, 0, 0, 4)
    assert generation.exits == (0,)
    assert generation.drafted_per_exit == generation.accepted_per_exit == (3,)


def test_drafts_of_both_kinds_are_counted_apart(decode, vanilla):
    """An n-gram draft, then one of the head at layer 2, then an n-gram draft after that one."""
    ngrams = ScriptedNgrams({FIRST: right_after(vanilla, FIRST), FIRST + 2: right_after(vanilla, FIRST + 2)})
    heads = {FIRST + 1: {2: (right_after(vanilla, FIRST + 1)[0], 0.9)}}
    result = decode(ngrams, heads, max_new_tokens=5)
    generation = result.generation
    assert_vanillas(result, vanilla)
    assert generation.num_rounds == 1
    assert generation.draft_depths == (4, 0, 2, 0, 4)
    assert generation.exits == (0, 1, 2, 3)
    assert generation.drafted_per_exit == generation.accepted_per_exit == (2, 0, 1, 0)
    assert generation.layers_run == 2 + 2 + 2


PATTERNS = [p for n in range(1, 5) for p in itertools.product([True, False], repeat=n)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: "".join("ar"[not ok] for ok in p))
def test_every_accept_reject_pattern_of_ngrams_ends_in_vanillas_tokens(decode, vanilla, pattern):
    proposed = [
        token_id if right else (token_id + 1) % 97
        for token_id, right in zip(right_after(vanilla, FIRST, len(pattern)), pattern, strict=True)
    ]
    accepted = pattern.index(False) if False in pattern else len(pattern)
    ngrams = ScriptedNgrams({FIRST: proposed})
    result = decode(ngrams, max_new_tokens=12)
    assert_vanillas(result, vanilla)
    assert result.generation.drafted_per_exit == (len(pattern),)
    assert result.generation.accepted_per_exit == (accepted,)
    assert result.generation.num_rounds == 11 - accepted
    assert ngrams.verified == [*PROMPT, *result.generation.output_token_ids]


@pytest.mark.parametrize("max_drafts", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize("num_ngrams", [1, 2, 9])
def test_pending_drafts_of_both_kinds_together_never_exceed_max_drafts(decode, vanilla, max_drafts, num_ngrams):
    """Everything is right, so each round drafts all it may and emits one token more."""
    ngrams = ScriptedNgrams({i: right_after(vanilla, i, num_ngrams) for i in range(FIRST, FIRST + 23)})
    heads = {i: {1: (right_after(vanilla, i)[0], 0.9)} for i in range(FIRST, FIRST + 23)}
    for given_heads in (None, heads):
        result = decode(ngrams, given_heads, max_drafts=max_drafts)
        ngrams.verified.clear()
        assert_vanillas(result, vanilla)
        drafts_per_round = max_drafts if given_heads else min(max_drafts, num_ngrams)
        assert result.generation.num_rounds == -(-23 // (drafts_per_round + 1))
        assert max(ngrams.rooms, default=0) <= max_drafts


@pytest.mark.parametrize("max_new_tokens", range(1, 9))
def test_max_new_tokens_is_exact_with_ngrams(decode, vanilla, max_new_tokens):
    ngrams = ScriptedNgrams({i: right_after(vanilla, i, 3) for i in range(FIRST, FIRST + 21)})
    result = decode(ngrams, max_new_tokens=max_new_tokens)
    assert_vanillas(result, vanilla)
    assert len(result.generation.output_token_ids) == max_new_tokens
    assert result.generation.finish_reason == "length"


@pytest.mark.parametrize("eos_idx", [0, 1, 2])
def test_an_eos_inside_a_proposal_cuts_it_there(decode, vanilla, eos_idx):
    wrong_eos = next(t for t in range(97) if t not in vanilla.generation.output_token_ids)
    proposed = right_after(vanilla, FIRST, 3)
    proposed[eos_idx] = wrong_eos
    result = decode(ScriptedNgrams({FIRST: proposed}), max_new_tokens=6, eos={wrong_eos})
    assert_vanillas(result, vanilla)
    assert len(result.generation.output_token_ids) == 6, "a proposed EOS ends nothing"
    assert result.generation.drafted_per_exit == (eos_idx,)


@pytest.mark.parametrize("eos_at", range(1, 6))
def test_a_right_eos_inside_a_proposal_ends_the_output_there(decode, model, vanilla, eos_at):
    eos = {vanilla.generation.output_token_ids[eos_at]}
    plain = generate(model, Request(PROMPT, 24, eos))
    result = decode(ScriptedNgrams({FIRST: right_after(vanilla, FIRST, 6)}), eos=eos)
    assert_vanillas(result, vanilla)
    assert result.generation.output_token_ids == plain.generation.output_token_ids
    assert result.generation.finish_reason == "eos"
    assert not eos & set(result.generation.output_token_ids[:-1])


def test_heads_draft_on_where_an_ngram_proposal_ends(decode, vanilla):
    """The head is asked about the last n-gram draft: the tokens before it have a successor."""
    ngrams = ScriptedNgrams({FIRST: right_after(vanilla, FIRST, 2)})
    heads = {FIRST + i: {1: (right_after(vanilla, FIRST + i)[0], 0.9)} for i in range(4)}
    result = decode(ngrams, heads, max_new_tokens=6)
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths == (4, 0, 0, 1, 1, 4)
    assert result.generation.layers_run == 1 + 1 + 4


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_prompt_and_the_output_are_looked_up(kernels):
    """A model that always says 0, after a prompt where 0 was followed by 9: only the first proposals are wrong."""
    model = tiny_model(kernels=kernels)
    with torch.no_grad():
        model.lm.lm_head.weight.zero_()
    policy = Policy(max_drafts=3, ngram=0.0)
    generation = generate(model, Request([0, 9, 4], 40), policy, drafters_of(policy, None)).generation
    assert generation.output_token_ids == (0,) * 40
    assert generation.draft_depths[:2] == (4, 4), "9, 4 and 0 were proposed after the first 0"
    assert generation.draft_depths[-9:].count(0) >= 6, "three drafts a round"
    assert generation.num_drafted - generation.num_accepted == 3
