"""The parity contract on a CUDA device, where each call of a decode step is a graph; needs neither ray nor datasets."""

import gc

import pytest
import torch

from adadecode.bench.synthetic import synthetic_prompts
from adadecode.engine.decode import decode
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import OneExit, Policy
from adadecode.engine.tally import Decoded
from adadecode.engine.transformers import generate_with_transformers
from adadecode.evaluation.compare import compare
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.graphed import GraphedStep
from adadecode.kernels.kv_cache import bucket_columns
from adadecode.kernels.step import DecodeStep
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.head_tensors import HeadTensors, Shortlist
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.gpu.models import make_lm
from tests.models import FAMILIES, block_heads, medusa_heads, random_gates, random_heads, random_transforms, tiny_lm
from tests.unit.engine.test_medusa import Scripted

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXITS = (2, 4)


def make_model(dtype: torch.dtype, name: str = "llama-160m", **changed) -> DecoderModel:
    return DecoderModel(make_lm(dtype, name, **changed), "graphs")


def prompt_of(model: DecoderModel, length: int, seed: int = 0) -> list[int]:
    return synthetic_prompts(model.vocab_size, 1, length, seed)[0]


def decode_both(
    model: DecoderModel, prompt: list[int], max_new_tokens: int, policy: Policy, heads: ExitHeads | None = None
) -> tuple[Decoded, Decoded]:
    """Vanilla and AdaDecode at the same width, with logits; heads near the identity unless given."""
    heads = heads or random_heads(model, policy.exits)
    request = Request(prompt, max_new_tokens, record_logits=True)
    vanilla = generate(model, request, Policy(rows=policy.width))
    return vanilla, generate(model, request, policy, drafters_of(policy, heads))


def assert_same_bits(expected: Decoded, other: Decoded) -> None:
    assert other.generation.output_token_ids == expected.generation.output_token_ids
    assert torch.equal(other.logits, expected.logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "gemma3_text", "gpt_neox"])
def test_rows_are_independent_in_every_family(family, dtype):
    lm = tiny_lm(family, num_layers=3, hidden_size=256, intermediate_size=320, head_dim=64, vocab_size=512)
    model = DecoderModel(lm.to(DEVICE, dtype), "graphs")
    for width in (8, 16):
        check_rows_independent(model, width)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_independent_at_every_number_of_columns(dtype, width):
    check_rows_independent(make_model(dtype), width, (200, 400, 900, 1900))


@pytest.mark.parametrize("max_drafts", [3, 5, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_hold_past_600_tokens(dtype, max_drafts):
    model = make_model(dtype)
    policy = Policy(EXITS, (0.3, 0.3), max_drafts)
    vanilla, adadecode = decode_both(model, prompt_of(model, 60), 620, policy)
    assert_same_bits(vanilla, adadecode)
    generation = adadecode.generation
    assert 0 < generation.num_accepted < generation.num_drafted, "the test needs accepted and rejected drafts"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_methods_that_are_compared_with_adadecode_give_vanillas_bits(dtype):
    """A draft model has steps, graphs and a cache of its own beside the model's; its first layers, and the whole of it."""
    model = make_model(dtype)
    half = make_lm(dtype)
    del half.model.layers[3:]
    half.config.num_hidden_layers = 3
    heads = random_heads(model, EXITS)
    request = Request([*prompt_of(model, 40), *prompt_of(model, 40)], 200, record_logits=True)
    policy = Policy(max_drafts=5, layerskip=OneExit(EXITS[0], 4))
    vanilla = decode(model, METHODS["vanilla"], request, policy)
    drafts = {"its first layers": DecoderModel(half, "graphs"), "the whole": make_model(dtype)}
    for name, draft in [("ngram", None), ("layerskip", None), *(("speculative", draft) for draft in drafts)]:
        found = decode(model, METHODS[name], request, policy, heads, None if draft is None else drafts[draft])
        assert_same_bits(vanilla, found)
        assert found.generation.num_drafted > 0, (name, draft)
        assert draft != "the whole" or found.generation.num_accepted > 0.9 * found.generation.num_drafted


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-8b"])
def test_bits_hold_with_tied_heads_and_with_normed_queries(name):
    model = make_model(torch.bfloat16, name, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    assert_same_bits(*decode_both(model, prompt_of(model, 40), 300, Policy(EXITS, (0.3, 0.3), 5)))


@pytest.mark.parametrize("bucket", [256, 448, 1216, 1920])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bits_hold_to_the_last_column_of_every_bucket(dtype, bucket):
    model = make_model(dtype)
    prompt = prompt_of(model, bucket // 2)
    num_new = bucket - 1 - len(prompt)
    assert bucket_columns(len(prompt) + num_new, model.context_len) == bucket
    assert bucket_columns(len(prompt) + num_new + 1, model.context_len) > bucket
    vanilla, adadecode = decode_both(model, prompt, num_new, Policy(EXITS, (0.3, 0.3), 5))
    assert model.new_step(8, len(prompt) + num_new).cache.num_columns == bucket
    assert_same_bits(vanilla, adadecode)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_graph_captured_for_a_short_request_serves_a_long_one(dtype):
    lm = make_lm(dtype)
    used, fresh = DecoderModel(lm, "graphs"), DecoderModel(lm, "graphs")
    policy = Policy(EXITS, (0.3, 0.3), 5)
    decode_both(used, prompt_of(used, 5), 12, policy)
    expected = decode_both(fresh, prompt_of(fresh, 30), 220, policy)
    found = decode_both(used, prompt_of(used, 30), 220, policy)
    for one, other in zip(expected, found, strict=True):
        assert_same_bits(one, other)
    assert_same_bits(*found)


def test_a_long_request_leaves_nothing_behind_for_a_short_one():
    lm = make_lm(torch.bfloat16)
    used, fresh = DecoderModel(lm, "graphs"), DecoderModel(lm, "graphs")
    policy = Policy(EXITS, (0.3, 0.3), 5)
    decode_both(used, prompt_of(used, 30), 220, policy)
    assert_same_bits(
        decode_both(fresh, prompt_of(fresh, 6, seed=1), 40, policy)[1],
        decode_both(used, prompt_of(used, 6, seed=1), 40, policy)[1],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_hold_with_ngrams_early_rejection_shortlists_and_gates(dtype):
    model = make_model(dtype)
    transforms = random_transforms(model, EXITS)
    token_ids = torch.arange(model.vocab_size // 2)
    rows = model.lm.lm_head.weight[: len(token_ids)].float().cpu()
    shortlist = Shortlist(token_ids, {e: rows @ transform for e, transform in transforms.items()})
    parts = {e: (transform,) for e, transform in transforms.items()}
    heads = HeadTensors(parts, shortlist, random_gates(model, EXITS)).on(model, "shortlist", 0.3)
    policy = Policy(EXITS, (0.2, 0.4), 7, reject=0.6, ngram=0.2)
    vanilla, adadecode = decode_both(model, prompt_of(model, 20) * 3, 300, policy, heads)
    assert_same_bits(vanilla, adadecode)
    assert all(drafted > 0 for drafted in adadecode.generation.drafted_per_exit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_hold_with_blocks_whatever_heads_decoded_before(dtype):
    model = make_model(dtype)
    policy = Policy(EXITS, (0.02, 0.05), 7, reject=0.3)
    first, second = (block_heads(model, EXITS, 512, seed) for seed in (0, 1))
    drafted = []
    for heads in (first, second, first):
        vanilla, adadecode = decode_both(model, prompt_of(model, 20), 200, policy, heads)
        assert_same_bits(vanilla, adadecode)
        drafted.append(adadecode.generation.drafted_per_exit)
    assert drafted[0] == drafted[2]
    assert all(number > 0 for number in drafted[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_hold_with_medusa_heads_which_see_what_graphs_left_in_the_slots(dtype):
    model, policy = make_model(dtype), Policy(max_drafts=7)
    request = Request(prompt_of(model, 40), 200, record_logits=True)
    vanilla = decode(model, METHODS["vanilla"], request, policy)
    scripted = Scripted(vanilla.generation.output_token_ids, (2, 0, 5, 1, 4))
    for heads in (scripted, medusa_heads(model, 5)):
        assert_same_bits(vanilla, decode(model, METHODS["medusa"], request, policy, medusa=heads))
    predicted = [int(model.lm_head(state[None]).argmax()) for state in scripted.states]
    assert predicted == [vanilla.generation.output_token_ids[start] for start in scripted.starts[: len(predicted)]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_row_alone_differs_from_eight_at_near_ties_only(dtype):
    model = make_model(dtype)
    for seed in range(4):
        prompt = prompt_of(model, 40, seed)
        wide, alone = (generate(model, Request(prompt, 200, record_logits=True), Policy(rows=w)) for w in (8, 1))
        assert len(alone.generation.output_token_ids) == 200
        assert compare(wide, alone, str(dtype).removeprefix("torch.")).parity in ("exact", "near_tie")


def test_vanilla_repeats_itself_and_agrees_with_transformers():
    model = make_model(torch.float32)
    prompt = prompt_of(model, 40)
    once, again = (generate(model, Request(prompt, 200, record_logits=True)) for _ in range(2))
    assert_same_bits(once, again)
    library = generate_with_transformers(model, Request(prompt, 200, record_logits=True))
    assert compare(once, library, "float32").parity in ("exact", "near_tie")


@torch.inference_mode()
def play(step: DecodeStep, prompt: list[int]) -> list[torch.Tensor]:
    """Hidden states and logits after every call of a round with parked slots."""
    step.hidden.zero_()
    kept = [step.prefill(prompt).logits]
    step.begin(len(prompt))
    step.put(0, [3])
    for call in (
        lambda: step.run(0, 1, 0, 2),
        lambda: step.put(1, [4, 5]),
        lambda: step.run(1, 3, 0, 2),
        lambda: step.run(0, 3, 2, 4),
        lambda: step.put(3, [6]),
        lambda: step.run(3, 4, 0, 4),
        lambda: step.run(0, 4, 4, 6),
    ):
        call()
        torch.cuda.synchronize()
        kept.append(step.hidden.clone())
    predicted, tops = step.verify(0, 4)
    kept += [step.logits[:4].clone(), torch.tensor(predicted), torch.tensor(tops)]
    return kept


@pytest.mark.parametrize("width", [1, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_replayed_graph_gives_the_bits_of_the_same_operations_one_by_one(dtype, width):
    model = make_model(dtype)
    prompt = prompt_of(model, 33)
    graphed = model.new_step(width, 100)
    assert isinstance(graphed, GraphedStep)
    cache, attention = model.weights.new_cache(graphed.cache.num_columns), model.steps._attention
    eager = EagerStep(model.weights, model.steps.prefill, width, cache, attention=attention)
    if width == 1:
        expected, found = (play_one_row(step, prompt) for step in (eager, graphed))
    else:
        expected, found = play(eager, prompt), play(graphed, prompt)
        replayed = play(graphed, prompt)  # nothing is captured any more
        assert all(torch.equal(a, b) for a, b in zip(found, replayed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@torch.inference_mode()
def play_one_row(step: DecodeStep, prompt: list[int]) -> list[torch.Tensor]:
    """Hidden states and logits of three tokens in the only slot."""
    kept = [step.prefill(prompt).logits]
    for idx in range(3):
        step.begin(len(prompt) + idx)
        step.put(0, [7 + idx])
        step.run(0, 1, 0, 6)
        torch.cuda.synchronize()
        kept += [step.hidden.clone(), torch.tensor(step.verify(0, 1)[1]), step.logits.clone()]
    return kept


def test_graphs_outlive_those_of_another_model():
    """Graphs must own what they were captured with: library workspaces too, which libraries share between captures."""
    model = make_model(torch.bfloat16)
    policy = Policy(EXITS, (0.3, 0.3), 5)
    prompt = prompt_of(model, 30)
    expected = decode_both(model, prompt, 150, policy)
    for seed in range(2):
        other = make_model(torch.bfloat16, num_hidden_layers=5, seed=seed)
        decode_both(other, prompt_of(other, 30), 20, policy)
        del other
        gc.collect()
        torch.cuda.empty_cache()
        rubbish = torch.full((64 << 20,), float("nan"), device=DEVICE)
        found = decode_both(model, prompt, 150, policy)
        del rubbish
        for one, another in zip(expected, found, strict=True):
            assert_same_bits(one, another)
    model.new_step(8, 1500)  # a capture after another model's graphs are gone
    assert_same_bits(*decode_both(model, prompt, 1200, policy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bits_hold_with_compiled_layers(dtype):
    model = DecoderModel(make_lm(dtype, num_hidden_layers=5), "compile")
    check_rows_independent(model, 8)
    vanilla, adadecode = decode_both(model, prompt_of(model, 40), 300, Policy(EXITS, (0.3, 0.3), 5))
    assert_same_bits(vanilla, adadecode)
    plain = generate(make_model(dtype, num_hidden_layers=5), Request(prompt_of(model, 40), 50))
    assert plain.generation.output_token_ids[0] == vanilla.generation.output_token_ids[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_embedded_model_keeps_its_bits(dtype):
    model, tokenizer = load_model(ModelSettings(model="demo", dtype=dtype, device=DEVICE))
    check_rows_independent(model, 8)
    prompt = tokenizer("Question: Ann has 3 pens and buys 4 more. How many pens has she?\nAnswer:")["input_ids"]
    policy = Policy((4, 8, 12), (0.05,) * 3, 5, ngram=0.3)
    assert_same_bits(*decode_both(model, prompt, 200, policy))


def test_the_end_of_the_context_is_reached_with_slots_to_spare():
    # the last test: a row that read past the rotary tables would leave the device unusable
    model = make_model(torch.bfloat16, max_position_embeddings=300)
    prompt = prompt_of(model, 240)
    for max_drafts in (5, 64):
        vanilla, adadecode = decode_both(model, prompt, 500, Policy(EXITS, (0.3, 0.3), max_drafts))
        assert len(vanilla.generation.output_token_ids) == 60
        assert_same_bits(vanilla, adadecode)
