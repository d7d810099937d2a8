"""Speculative decoding: what a draft model reads and proposes. Its bits: tests/fuzz/test_exact_methods.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from adadecode.engine.decode import decode
from adadecode.engine.draft_model import ModelDrafter
from adadecode.engine.generate import Request
from adadecode.engine.policy import Policy
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.records import Generation
from tests.models import tiny_lm, tiny_model

PROMPT = [7, 8, 9] * 4
SPECULATIVE = METHODS["speculative"]


def speculative(
    draft, max_new_tokens: int = 40, *, prompt=PROMPT, model=None, gamma: float = 0.0, eos=()
) -> Generation:
    """What `draft` and verification give, at most five drafts in a round."""
    policy = Policy(max_drafts=5, draft_gamma=gamma)
    request = Request(prompt, max_new_tokens, eos)
    return decode(model or tiny_model(), SPECULATIVE, request, policy, draft=draft).generation


def test_a_draft_model_that_is_the_model_itself_is_always_right():
    generation = speculative(tiny_model(), 1 + 6 * 6 + 3)
    assert (generation.num_rounds, generation.num_drafted, generation.num_accepted) == (7, 32, 32)
    assert generation.exits == (0,)
    assert generation.layers_run == 7 * 4, "the draft model's own layers are not the model's"


def test_a_draft_model_stops_where_all_of_its_drafts_may_not_hold():
    """The product of its probabilities is what must exceed the threshold."""
    draft, loose = tiny_model(seed=1), speculative(tiny_model(seed=1))
    strict = speculative(draft, gamma=0.2)
    assert 0 < strict.num_drafted < loose.num_drafted
    assert strict.output_token_ids == loose.output_token_ids
    assert speculative(draft, gamma=0.999).num_drafted == 0


def test_a_draft_model_drafts_what_it_would_go_on_with_after_the_text_whatever_fell_before(monkeypatch):
    """Its own greedy continuation, as if it read the text anew: nothing of a wrong draft is left in its cache."""
    lm = tiny_lm()
    del lm.model.layers[2:]
    lm.config.num_hidden_layers = 2
    draft, seen = DecoderModel(lm), []
    propose = ModelDrafter.propose

    def noted(drafter: Any, *arguments: Any) -> Any:
        text = list(drafter._certain)
        chain = propose(drafter, *arguments)
        seen.append((text, [token_id for token_id, _ in chain]))
        return chain

    monkeypatch.setattr(ModelDrafter, "propose", noted)
    generation = speculative(draft, prompt=[5, 6, 7])
    assert 0 < generation.num_accepted < generation.num_drafted, "the test needs right drafts and wrong ones"
    assert sum(len(chain) for _, chain in seen) == generation.num_drafted
    for text, chain in seen:
        alone = decode(draft, METHODS["vanilla"], Request(text, max(1, len(chain)), ())).generation
        assert list(alone.output_token_ids)[: len(chain)] == chain


def chain_of(drafter: Any, *ahead: int) -> list[tuple[int, float]]:
    """What `drafter` goes on with after its text and the drafts `ahead`."""
    return drafter.propose(None, SimpleNamespace(token_ids=[0, *ahead], room=5 - len(ahead)), None, 0)


def test_a_draft_model_takes_over_from_drafts_that_are_not_its_own():
    """As where another drafter's were accepted, or are pending."""
    drafter, anew = (ModelDrafter(0.0, tiny_model(seed=1), 60, 97, ()) for _ in range(2))
    drafter.extend(PROMPT)
    chain_of(drafter)
    drafter.extend([50, 51])
    anew.extend([*PROMPT, 50, 51])
    assert [token_id for token_id, _ in chain_of(drafter)] == [token_id for token_id, _ in chain_of(anew)]
    anew = ModelDrafter(0.0, tiny_model(seed=1), 60, 97, ())
    anew.extend([*PROMPT, 50, 51, 60, 61])
    of_three = [token_id for token_id, _ in chain_of(drafter, 60, 61)]
    assert of_three == [token_id for token_id, _ in chain_of(anew)][:3]


@pytest.mark.parametrize(
    ("eos", "num_drafts"), [((), 3), ((11,), 2), ((10,), 1)], ids=["0.243 does not exceed 0.25", "second", "first"]
)
def test_a_draft_is_as_sure_as_all_before_it_together_and_none_follows_an_eos(monkeypatch, eos, num_drafts):
    said = iter([(10, 0.9), (11, 0.5), (12, 0.6), (13, 0.9)])
    monkeypatch.setattr(ModelDrafter, "_next", lambda drafter, ahead: next(said))
    drafter: Any = ModelDrafter(0.25, tiny_model(), 40, 97, eos)
    drafter.extend(PROMPT)
    chain = chain_of(drafter)
    assert chain == [(10, 0.9), (11, pytest.approx(0.45)), (12, pytest.approx(0.27))][:num_drafts]


def test_a_draft_model_drafts_no_more_after_an_eos():
    model = tiny_model(seed=2)
    output = speculative(tiny_model(seed=2), model=model, prompt=[5, 6, 7]).output_token_ids
    end = next(i for i, token_id in enumerate(output) if i > 2 and token_id not in output[:i])
    ended = speculative(tiny_model(seed=2), model=model, prompt=[5, 6, 7], eos=(output[end],))
    assert ended.output_token_ids == output[: end + 1]
    assert ended.finish_reason == "eos"
    assert ended.num_accepted == ended.num_drafted, "nothing that a confident EOS leads to was drafted"


def test_a_draft_model_reads_what_is_new_and_nothing_twice():
    """Each token of the text once, and each draft it goes on from: the cache is rolled back, not filled again."""
    draft, read, first = tiny_model(seed=1), [], [0]
    new_step = draft.new_step

    def counted_step(width: int, num_positions: int) -> Any:
        step: Any = new_step(width, num_positions)
        begin, run = step.begin, step.run

        def counted_begin(position: int) -> None:
            first[0] = position
            begin(position)

        def counted_run(lo: int, hi: int, start: int, stop: int) -> None:
            read.extend(range(first[0] + lo, first[0] + hi))
            run(lo, hi, start, stop)

        step.begin, step.run = counted_begin, counted_run
        return step

    draft.new_step = counted_step
    generation = speculative(draft)
    # of a round's drafts all but the last are read, and again where they were wrong; of the text all but the prompt
    assert sorted(set(read)) == list(range(len(PROMPT), max(read) + 1))
    wrong = generation.num_drafted - generation.num_accepted
    assert len(read) <= 39 + wrong


@pytest.mark.parametrize("context_len", [10, 13, 20, 30])
def test_a_draft_model_is_silent_past_its_context(context_len):
    generation = speculative(tiny_model(context_len=context_len))
    vanilla = decode(tiny_model(), METHODS["vanilla"], Request(PROMPT, 40, ()), Policy(max_drafts=5)).generation
    assert generation.output_token_ids == vanilla.output_token_ids
    # it can propose one token after all that it has positions for
    room = max(0, context_len - len(PROMPT))
    assert generation.num_drafted <= room
    assert (generation.num_drafted > 0) == (room > 0)


@pytest.mark.parametrize("vocab_size", [50, 130])
def test_a_draft_model_of_another_vocabulary_size_proposes_what_both_have(vocab_size):
    """Embeddings are often padded. A text with a token that it lacks it cannot read; one the model lacks is no draft."""
    vanilla = decode(tiny_model(), METHODS["vanilla"], Request(PROMPT, 40, ()), Policy(max_drafts=5)).generation
    generation = speculative(tiny_model(vocab_size=vocab_size))
    assert generation.output_token_ids == vanilla.output_token_ids
    assert generation.num_drafted > 0
    unread = speculative(tiny_model(vocab_size=50), prompt=[7, 60, 8])
    assert unread.num_drafted == 0


def test_the_draft_models_prefill_is_part_of_the_time_to_first_token():
    order = []
    model, draft = tiny_model(), tiny_model()
    steps = model.new_step, draft.new_step

    def noting(name, new_step):
        def new(width, num_positions):
            step = new_step(width, num_positions)
            prefill = step.prefill
            step.prefill = lambda prompt_ids: (order.append((name, len(prompt_ids))), prefill(prompt_ids))[1]
            return step

        return new

    model.new_step, draft.new_step = noting("model", steps[0]), noting("draft", steps[1])
    generation = speculative(draft, 1, model=model)
    assert order == [("model", 12), ("draft", 12)]
    assert generation.num_rounds == 0, "an output of one token ends with its TTFT, after both"
