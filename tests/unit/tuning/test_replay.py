import random
from dataclasses import replace

import pytest

from adadecode.bench.calls import RecordingModel
from adadecode.engine.policy import VANILLA, Policy
from adadecode.kernels.sampling import Draw
from adadecode.records import Prompt
from adadecode.tuning.contenders import Contender
from adadecode.tuning.measure import decode_traced, random_candidate, replays_alike
from adadecode.tuning.replay import Candidate, replay, replay_oracle
from adadecode.tuning.trace import record
from tests.unit.tuning.conftest import EOS, EXITS, FLOORS, PROMPTS

NUM_CANDIDATES = 10


def contender_of(traced, candidate: Candidate) -> Contender:
    heads = {"tiny": traced.heads.with_gate(candidate.gate)}
    return Contender("candidate", candidate.policy, traced.space.width, heads, candidate)


def candidates(traced) -> list[Candidate]:
    rng = random.Random(0)
    drawn = [random_candidate(traced.space, True, rng) for _ in range(NUM_CANDIDATES)]
    lowest = Policy(EXITS, FLOORS.exits, 3, 0.1, FLOORS.ngram, "chain")
    unsure = Policy(EXITS, (0.32,) * 3, 3, 0.1, 0.32)  # as low as gammas of tokens may be: 0.32 ** 3 exceeds the floors
    lows = [lowest, replace(lowest, reject=None), unsure, replace(unsure, reject=None)]
    return [*drawn, Candidate(VANILLA), *map(Candidate, lows), Candidate(lowest, 0.5)]


def test_a_replay_makes_every_call_of_the_engine_with_the_same_answers(traced):
    num_wrong = num_rejected = 0
    for candidate in candidates(traced):
        for trace in traced.traces:
            assert replays_alike(traced.model, contender_of(traced, candidate), trace, traced.space), candidate
            generation = replay(trace, traced.space, traced.facts, candidate).generation
            num_wrong += generation.num_drafted - generation.num_accepted
            num_rejected += candidate.policy.reject is not None and generation.num_drafted > generation.num_accepted
    assert num_wrong > 100, "the heads are never wrong: the test has no teeth"
    assert num_rejected > 10


def test_a_replay_of_a_drawn_output_is_the_engine_too(eager):
    draw = Draw(1.0, key=3)
    prompts = [Prompt("tiny", str(idx), prompt) for idx, prompt in enumerate(PROMPTS[2:4])]
    draws = [replace(draw, first_position=len(prompt.token_ids)) for prompt in prompts]
    traces = [record(eager.model, eager.heads, eager.space, *each) for each in zip(prompts, draws, strict=True)]
    candidate = candidates(eager)[-5]
    for trace in traces:
        assert replays_alike(eager.model, contender_of(eager, candidate), trace, eager.space)


def test_a_replay_drafts_from_the_store_that_was_traced(traced):
    candidate = Candidate(Policy((), (), 3, None, 0.2, stop="chain"))

    def num_accepted(facts) -> int:
        replayed = (replay(trace, traced.space, facts, candidate) for trace in traced.traces)
        return sum(one.generation.num_accepted for one in replayed)

    assert num_accepted(traced.facts) > 2 * num_accepted(traced.facts._replace(stores={}))


@pytest.mark.parametrize("ngram_store", [False, True])
def test_a_replay_of_heads_without_a_store_is_the_engine_too(eager, ngram_store):
    candidate = Candidate(Policy(EXITS, (0.1, 0.1, 0.1), 3, 0.1, 0.05, stop="chain", ngram_store=ngram_store))
    for trace in eager.traces:
        assert replays_alike(eager.model, contender_of(eager, candidate), trace, eager.space)


def test_a_trace_of_other_confidences_is_noticed(eager):
    candidate = Candidate(Policy(EXITS, (0.1, 0.1, 0.1), 3, stop="chain"))
    trace = max(eager.traces, key=lambda t: len(t.nodes))
    node = trace.nodes[0]
    changed = node._replace(proposals=[(token_id, p * 0.999) for token_id, p in node.proposals])
    trace.nodes[0] = changed
    try:
        assert not replays_alike(eager.model, contender_of(eager, candidate), trace, eager.space)
    finally:
        trace.nodes[0] = node


def test_a_replay_counts_the_calls_the_engine_makes(traced):
    for candidate in candidates(traced)[:6]:
        for trace in traced.traces[:3]:
            watched = RecordingModel(traced.model)
            decode_traced(watched, contender_of(traced, candidate), trace, traced.space)
            calls = replay(trace, traced.space, traced.facts, candidate).calls
            counted = watched.step.calls
            for rows in range(1, traced.space.width + 1):
                layers = sum(n * (c.stop - c.start) for c, n in counted.items() if (c.kind, c.rows) == ("layers", rows))
                tests = [n for c, n in counted.items() if (c.kind, c.rows) == ("test", rows) and c.head != "gate"]
                verifies = [n for c, n in counted.items() if (c.kind, c.rows) == ("verify", rows)]
                found = (calls.layers[rows], calls.tests[rows], calls.verifies[rows])
                assert found == (layers, sum(tests), sum(verifies)), rows
            assert calls.num_segments == sum(n for c, n in counted.items() if c.kind == "layers")
            assert calls.num_gates == sum(n for c, n in counted.items() if c.head == "gate")
            assert calls.num_rounds == sum(calls.verifies)


@pytest.mark.parametrize("ngrams", [False, True])
def test_the_oracle_drafts_only_what_is_right_and_runs_no_more_layers_than_any_policy(traced, ngrams):
    lowest = Candidate(Policy(EXITS, (0.1, 0.1, 0.1), 3, None, 0.05 if ngrams else None, "chain"))
    num_fewer = 0
    for trace in traced.traces:
        perfect = replay_oracle(trace, traced.space, traced.facts, 3, ngrams=ngrams)
        found = replay(trace, traced.space, traced.facts, lowest).calls
        assert perfect.num_rounds <= found.num_rounds
        num_fewer += perfect.num_rounds < found.num_rounds
    assert num_fewer


def test_the_oracle_takes_the_first_exit_that_agrees(eager):
    trace = max(eager.traces, key=lambda t: len(t.nodes))
    calls = replay_oracle(trace, eager.space, eager.facts, 1, ngrams=False)
    expected_layers, idx = 0, 0
    while idx < len(trace.nodes):
        proposals = [token_id for token_id, _ in trace.nodes[idx].proposals]
        right = trace.output_ids[idx + 1]
        may_draft = right != EOS and idx + 2 < eager.space.max_new_tokens
        first = EXITS[proposals.index(right)] if right in proposals and may_draft else None
        # a draft runs to the exit alone, then both run the rest: one row to the exit of each, two rows from there
        expected_layers += 4 if first is None else first + 4
        idx += 1 if first is None else 2
    assert sum(calls.layers) == expected_layers


def test_a_candidate_that_the_space_does_not_cover_is_refused(eager):
    outside = [
        Policy((1,), (0.01,), 3, stop="chain"),
        Policy((1,), (0.5,), 4),
        Policy((1,), (0.5,), 3, None, 0.001, "chain"),
        Policy((1,), (0.25,), 3),  # three drafts of 0.25 each hold with less than 0.02
    ]
    for policy in outside:
        assert not eager.space.covers(policy)
        with pytest.raises(AssertionError):
            replay(eager.traces[0], eager.space, eager.facts, Candidate(policy))


def test_gammas_of_tokens_are_covered_where_the_least_of_them_in_a_row_are_above_the_floors(eager):
    assert eager.space.covers(Policy((1,), (0.28,), 3)), "0.28 ** 3 is 0.022"
    assert not eager.space.covers(Policy((2,), (0.28,), 3)), "the floor of the second exit is higher"
    assert eager.space.covers(Policy((2,), (0.28,), 2))
    assert not eager.space.covers(Policy((1,), (0.28,), 3, ngram=0.1)), "n-grams are less sure before it"
    assert eager.space.covers(Policy((1,), (0.03,), 1))
    assert not eager.space.covers(Policy((4,), (0.9,), 1)), "no such exit was traced"
    assert eager.space.covers(VANILLA)
