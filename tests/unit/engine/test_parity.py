"""The parity contract: tokens equal and accepted logits bit-identical to vanilla's at the same width."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_every_count, check_rows_independent, check_ties
from adadecode.engine.policy import Policy
from adadecode.engine.stop_strings import StopStrings
from adadecode.engine.tally import Decoded
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import RowsDependentError
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.layers import head_step, layer_step
from adadecode.kernels.native import NativeStep
from adadecode.kernels.sampling import Draw
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.head_tensors import HeadTensors
from adadecode.records import Generation
from adadecode.settings import Kernels
from tests.models import (
    ANY_FAMILY,
    EAGER_DTYPES,
    FAMILIES,
    KERNELS,
    KERNELS_AND_DTYPES,
    NATIVE_DTYPES,
    letters_stop,
    needs_compiler,
    random_gates,
    random_heads,
    random_transforms,
    shortlist_of,
    tiny_lm,
    tiny_model,
)


def decode_both(
    model: DecoderModel,
    prompt: list[int],
    policy: Policy,
    heads: ExitHeads | None,
    max_new_tokens: int,
    stops: StopStrings | None = None,
    draw: Draw | None = None,
) -> tuple[Decoded, Decoded]:
    """Vanilla and AdaDecode at the same width, with logits."""
    request = Request(prompt, max_new_tokens, record_logits=True, stops=stops, draw=draw)
    vanilla = generate(model, request, Policy(rows=policy.width))
    return vanilla, generate(model, request, policy, drafters_of(policy, heads, draw))


def assert_same_bits(vanilla: Decoded, other: Decoded) -> None:
    assert other.generation.output_token_ids == vanilla.generation.output_token_ids
    assert other.generation.finish_reason == vanilla.generation.finish_reason
    assert torch.equal(other.logits, vanilla.logits)


DRAW = {
    "family": st.sampled_from(sorted(ANY_FAMILY)),
    "seed": st.integers(0, 3),
    "tied": st.booleans(),
    "exits": st.sets(st.integers(1, 4), max_size=4).map(lambda found: tuple(sorted(found))),
    "gamma": st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]),
    "max_drafts": st.integers(0, 9),
    "reject": st.sampled_from([None, 0.0, 0.02, 0.1, 0.4]),
    "stop": st.sampled_from(["token", "chain"]),
    "ngram": st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.6])),
    "gate": st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    "shortlist_len": st.sampled_from([None, 1, 20, 97]),
    "prompt_len": st.integers(1, 70),
    "prompt_vocab": st.sampled_from([3, 97]),
    "max_new_tokens": st.integers(1, 24),
    "temperature": st.sampled_from([None, 0.3, 0.7, 1.0, 1.5]),
    "filters": st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.9}]),
    "stop_string": st.sampled_from([None, None, "ab", "ccc", "d"]),
}


def assert_policy_keeps_bits(kernels: Kernels, dtype: torch.dtype, drawn: dict) -> None:
    """Decodes what `drawn` says, see DRAW; a small `prompt_vocab` gives the n-gram drafter something to find."""
    model = tiny_model(
        drawn["family"], dtype=dtype, kernels=kernels, seed=drawn["seed"], tied=drawn["tied"], num_layers=5
    )
    generator = torch.Generator().manual_seed(drawn["seed"])
    prompt = torch.randint(0, drawn["prompt_vocab"], (drawn["prompt_len"],), generator=generator).tolist()
    exits, max_drafts, ngram = drawn["exits"], drawn["max_drafts"], drawn["ngram"]
    transforms, shortlist_len = random_transforms(model, exits, drawn["seed"]), drawn["shortlist_len"]
    frequent = shortlist_len and torch.randperm(97, generator=generator)[:shortlist_len].sort().values
    heads = None
    if exits:
        shortlist = None if frequent is None else shortlist_of(model, transforms, frequent)
        tensors = HeadTensors({e: (t,) for e, t in transforms.items()}, shortlist, random_gates(model, exits))
        heads = tensors.on(model, "full" if frequent is None else "shortlist", drawn["gate"])
    policy = Policy(exits, (drawn["gamma"],) * len(exits), max_drafts, drawn["reject"], ngram, drawn["stop"])
    stops = None if drawn["stop_string"] is None else letters_stop(drawn["stop_string"])
    draw = None
    if drawn["temperature"] is not None:
        draw = Draw(drawn["temperature"], **drawn["filters"], key=drawn["seed"] << 60 | 7, first_position=len(prompt))
    vanilla, adadecode = decode_both(model, prompt, policy, heads, drawn["max_new_tokens"], stops, draw)
    assert_same_bits(vanilla, adadecode)
    generation = adadecode.generation
    num_tokens = len(generation.output_token_ids)
    assert num_tokens == drawn["max_new_tokens"] or generation.finish_reason == "stop"
    assert generation.num_rounds == num_tokens - 1 - generation.num_accepted
    # a skipped test, or one whose bar is certainty, drafts nothing; a shortlist of one token is always certain
    heads_are_silent = not exits or drawn["gate"] == 1.0 or drawn["gamma"] == 1.0
    if max_drafts == 0 or (heads_are_silent and ngram is None):
        assert generation.num_drafted == 0
        assert generation.layers_run == vanilla.generation.layers_run


@pytest.mark.parametrize(("kernels", "dtype"), NATIVE_DTYPES)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(drawn=st.fixed_dictionaries(DRAW))
def test_any_policy_gives_vanillas_tokens_and_bits_with_native_kernels(kernels, dtype, drawn):
    assert_policy_keeps_bits(kernels, dtype, drawn)


@pytest.mark.parametrize(("kernels", "dtype"), EAGER_DTYPES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=st.fixed_dictionaries(DRAW))
def test_any_policy_gives_vanillas_tokens_and_bits_with_eager_kernels(kernels, dtype, drawn):
    assert_policy_keeps_bits(kernels, dtype, drawn)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize(("prompt_len", "max_new_tokens"), [(490, 40), (540, 25)])
def test_bits_hold_past_512_tokens(kernels, dtype, prompt_len, max_new_tokens):
    model = tiny_model("llama", dtype=dtype, kernels=kernels, num_layers=3)
    policy = Policy((1, 2), (0.05, 0.05), 5, reject=0.2, ngram=0.3)
    prompt = [i % 97 for i in range(prompt_len)]
    vanilla, adadecode = decode_both(model, prompt, policy, random_heads(model, (1, 2)), max_new_tokens)
    assert_same_bits(vanilla, adadecode)
    assert adadecode.generation.num_accepted > 0, "the test needs accepted drafts"
    assert adadecode.generation.num_accepted < adadecode.generation.num_drafted, "and rejected ones"


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_vanilla_repeats_itself_bit_for_bit(kernels, dtype):
    model = tiny_model(dtype=dtype, kernels=kernels)
    runs = [generate(model, Request([5, 6, 7], 40, record_logits=True)) for _ in range(2)]
    assert_same_bits(*runs)


@pytest.mark.parametrize(("kernels", "dtype"), NATIVE_DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_native_vanilla_has_the_same_bits_at_every_width(family, kernels, dtype):
    """Rows that take no part are not computed, so there is no `vanilla-w1` with other bits."""
    model = tiny_model(family, dtype=dtype, kernels=kernels)
    narrow, *wider = (
        generate(model, Request([5, 6, 7], 30, record_logits=True), Policy(rows=width)) for width in (1, 3, 8)
    )
    for wide in wider:
        assert_same_bits(narrow, wide)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_gives_the_same_bits_in_every_slot_and_company(family, kernels, dtype, num_threads):
    model = tiny_model(family, dtype=dtype, kernels=kernels, num_layers=1)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        check_rows_independent(model, 8)
        check_rows_independent(model, 16)
    finally:
        torch.set_num_threads(before)


def test_the_row_check_sees_a_row_that_depends_on_its_company():
    model = tiny_model(num_layers=2)

    def leaky_step(weights, shape, hidden, *where):
        return layer_step(weights, shape, hidden, *where) + hidden.mean()

    model.steps.layer_step = leaky_step
    with pytest.raises(RowsDependentError, match=r"W = 8 .* --threads"):
        check_rows_independent(model, 8)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context_len", [10, 24, 40, 1024])
def test_the_row_check_passes_with_windows_and_leaves_them(kernels, context_len, monkeypatch):
    model, stood = tiny_model("gemma2", num_layers=2, kernels=kernels, context_len=context_len), list[int]()
    begin = type(model.new_step(1, 2)).begin

    def noted(step, first_position: int) -> None:
        stood.append(first_position)
        begin(step, first_position)

    monkeypatch.setattr(NativeStep if kernels == "native" else EagerStep, "begin", noted)
    check_rows_independent(model, 8)
    assert max(stood) == min(8 + 8 + 8, context_len - 1), (
        "the row itself, in slot 0, and eight see nothing of the prompt"
    )


def test_the_row_check_sees_rows_that_depend_on_each_other_past_a_window_alone():
    def leaky_step(weights, shape, hidden, rotary, columns, *others):
        out = layer_step(weights, shape, hidden, rotary, columns, *others)
        return out + hidden.mean() if columns.min() >= 100 else out

    model = tiny_model("mistral", num_layers=1, sliding_window=100)
    model.steps.layer_step = leaky_step
    check_rows_independent(model, 8, (32,))  # no row of it leaves the window
    with pytest.raises(RowsDependentError, match=r"W = 8 and S = 256"):
        check_rows_independent(model, 8, (32, 200))
    unwindowed = tiny_model(num_layers=1)
    unwindowed.steps.layer_step = leaky_step
    check_rows_independent(unwindowed, 8, (32, 200))


class RaggedStep(EagerStep):
    """A step with the static-shape rule off: it has as many rows as take part in it."""

    def segment(self, start: int, stop: int) -> None:
        *token_ids, lo, hi, first_position = self.control.tolist()
        rows = EagerStep(self.weights, self._prefill, hi - lo, self.cache)
        rows.hidden.copy_(self.hidden[lo:hi])
        rows.begin(first_position + lo)
        rows.put(0, token_ids[lo:hi])
        rows.run(0, hi - lo, start, stop)
        self.hidden[lo:hi] = rows.hidden


class RaggedDecoder(DecoderModel):
    def new_step(self, width: int, num_positions: int) -> EagerStep:
        step = super().new_step(width, num_positions)
        return RaggedStep(self.weights, self.steps.prefill, width, step.cache)


def test_without_static_shapes_the_bits_of_eager_kernels_differ():
    """The teeth of the tests above: float32 bits must move when the rule is off."""

    def has_vanillas_bits(seed: int) -> bool:
        model = RaggedDecoder(tiny_lm(seed=seed, num_layers=5), "eager")
        policy = Policy((1, 3), (0.02, 0.02), 5)
        vanilla, adadecode = decode_both(model, [1, 2, 3], policy, random_heads(model, (1, 3)), 40)
        assert adadecode.generation.num_drafted > 0
        tokens_equal = vanilla.generation.output_token_ids == adadecode.generation.output_token_ids
        return tokens_equal and torch.equal(vanilla.logits, adadecode.logits)

    assert not all(map(has_vanillas_bits, range(6)))


@functools.cache
def by_transformers(family: str, tied: bool, prompt: tuple[int, ...]) -> Generation:
    model = tiny_model(family, tied=tied, eos_token_id=[3, 9])
    return generate_with_transformers(model, Request(prompt, 50)).generation


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_float32_tokens_equal_transformers_generate(family, tied, kernels):
    model = tiny_model(family, tied=tied, eos_token_id=[3, 9], kernels=kernels)
    for prompt in ((7,), tuple(range(20, 60))):
        oracle = by_transformers(family, tied, prompt)
        for width in (1, 8):
            ours = generate(model, Request(prompt, 50), Policy(rows=width)).generation
            assert ours.output_token_ids == oracle.output_token_ids
            assert ours.finish_reason == oracle.finish_reason


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context_len", [2, 3, 4, 16, 17, 40, 86, 87, 200])
def test_the_row_check_stays_within_a_context_shorter_than_its_rows(kernels, context_len, monkeypatch):
    """W = 72 rows after a prompt would stand up to position 151; the rotary table ends 65 past the context."""
    monkeypatch.setattr(EagerStep, "run", _run_within_the_context(EagerStep.run, context_len))
    monkeypatch.setattr(NativeStep, "run", _run_within_the_context(NativeStep.run, context_len))
    model = tiny_model(num_layers=1, context_len=context_len, kernels=kernels)
    check_rows_independent(model, 72)
    check_rows_independent(model, 1)


@pytest.mark.parametrize("num_positions", [40, 100, 127])
def test_the_row_check_is_made_at_the_columns_that_were_asked_for_though_not_all_rows_fit_in_them(num_positions):
    """W = 72 rows after a prompt take 192 columns, and a request of 100 positions has 128."""
    model = tiny_model(num_layers=1)
    model.steps.layer_step = leaky_at(model.num_columns(num_positions))
    with pytest.raises(RowsDependentError, match=rf"W = 72 and S = {model.num_columns(num_positions)} "):
        check_rows_independent(model, 72, (num_positions,))
    model.steps.layer_step = layer_step
    check_rows_independent(model, 72, (num_positions,))


@needs_compiler
def test_native_kernels_to_which_columns_are_no_shape_are_checked_with_room_for_all_rows(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr("adadecode.engine.invariance._check_at", lambda model, width, num, first: seen.append(num))
    check_rows_independent(tiny_model(num_layers=1, kernels="native"), 72, (40,))
    assert seen == [40, 152]


def _run_within_the_context(run, context_len: int):
    """`run` of a step, where every row must stand in the context."""

    def checked(step, lo: int, hi: int, start: int, stop: int) -> None:
        first_position = step._first_position if isinstance(step, NativeStep) else int(step._host[-1])
        assert 0 <= first_position + lo < first_position + hi <= context_len
        run(step, lo, hi, start, stop)

    return checked


@needs_compiler
def test_a_row_past_the_rotary_table_is_refused_before_it_is_read():
    model = tiny_model(num_layers=1, context_len=16, kernels="native")
    step = model.new_step(72, 150)
    step.begin(len(model.weights.rotaries[0][0]) - 1)
    step.put(0, [1, 2])
    step.run(0, 1, 0, 1)
    with pytest.raises(IndexError, match=r"2 rows from position 80 on, of 81"):
        step.run(0, 2, 0, 1)


def test_the_row_check_is_made_for_each_number_of_columns_once(monkeypatch):
    model, seen = tiny_model(num_layers=1), list[int]()
    monkeypatch.setattr(
        "adadecode.engine.invariance._check_at", lambda model, width, num_positions, first: seen.append(num_positions)
    )
    check_rows_independent(model, 8, (60, 62, 100, 5000))
    assert [model.num_columns(min(num, 1024)) for num in seen] == [64, 128, 1088]


def leaky_at(num_columns: int):
    """A layer step whose rows depend on each other where there are `num_columns` columns."""

    def leaky(weights, shape, hidden, rotary, columns, mask, keys, values):
        out = layer_step(weights, shape, hidden, rotary, columns, mask, keys, values)
        return out + hidden.mean() if keys.shape[1] == num_columns else out

    return leaky


def test_a_number_of_columns_at_which_rows_depend_on_each_other_is_found_where_a_request_needs_it():
    model = tiny_model(num_layers=1)
    model.steps.layer_step = leaky_at(448)
    check_rows_independent(model, 8)
    check_rows_independent(model, 8, (300, 500))
    with pytest.raises(RowsDependentError, match=r"W = 8 and S = 448"):
        check_rows_independent(model, 8, (300, 420, 500))


def odd_among(num_rows: int):
    """A layer step that computes something else where exactly `num_rows` rows take part."""

    def odd(weights, shape, hidden, rotary, columns, mask, keys, values):
        out = layer_step(weights, shape, hidden, rotary, columns, mask, keys, values)
        return out * 1.5 if int((columns != keys.shape[1] - 1).sum()) == num_rows else out

    return odd


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_row_has_the_same_bits_among_any_number_of_rows(kernels):
    check_every_count(tiny_model(num_layers=2, kernels=kernels), 8, 64)
    check_every_count(tiny_model(num_layers=1, context_len=6, kernels=kernels), 8, 64)


def test_a_number_of_rows_at_which_a_row_has_other_bits_is_found_though_one_and_all_are_alike():
    model = tiny_model(num_layers=1)
    model.steps.layer_step = odd_among(5)
    check_rows_independent(model, 8)
    with pytest.raises(RowsDependentError, match=r"how many there are \(slot 0 of 5 rows differs from a row alone\)"):
        check_every_count(model, 8, 64)


@pytest.mark.parametrize("kernels", KERNELS)
def test_of_planted_equal_logits_every_row_takes_the_lowest_id(kernels):
    assert check_ties(tiny_model(num_layers=2, kernels=kernels), 8) == 36, "each row of 1, 2, ... 8 had a tie"


def test_rows_that_take_the_last_of_equal_logits_are_found(monkeypatch):
    def last_of_equals(step, slots=slice(None)):
        step.logits.copy_(head_step(step.weights.head, step.weights, step.hidden))
        logits = step.logits[slots]
        tops = logits.max(dim=-1).values
        last = logits.shape[1] - 1 - logits.flip(1).argmax(dim=-1)
        return torch.stack((last.double(), tops.double()))

    monkeypatch.setattr(EagerStep, "verdicts", last_of_equals)
    with pytest.raises(
        RowsDependentError, match=r"takes token \d+ among equal logits in slot 0, and \d+ is the lowest"
    ):
        check_ties(tiny_model(num_layers=1), 8)
