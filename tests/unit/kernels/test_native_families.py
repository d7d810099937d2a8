"""native.cpp with all that the layers of a family may have: rows alone in their bits, numbers of the torch layers."""

import dataclasses
import itertools
import random

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.engine.transformers import generate_with_transformers
from adadecode.kernels import native
from adadecode.kernels.choose import Steps
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.library import load_library
from adadecode.kernels.native import NativeStep
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Head, LayerKind, LayerShape, LayerWeights, LogitShape, Weights
from adadecode.model.decoder import DecoderModel
from tests.models import OTHERS, needs_compiler, random_heads, tiny_lm, tiny_model

pytestmark = needs_compiler

DTYPES = (torch.float32, torch.bfloat16)
TOKENS = [(7 * i + 3) % 61 for i in range(30)]
RESTS = {"hidden_size": 72, "intermediate_size": 51, "num_attention_heads": 6, "head_dim": 12, "vocab_size": 65}
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.1, "atol": 0.15}}


def run_in_calls(step: DecodeStep, num_layers: int, *calls: int) -> DecodeStep:
    """TOKENS through all layers from position 0 on, in calls of so many rows; the last call takes the rest."""
    step.begin(0)
    step.put(0, TOKENS)
    bounds = [*itertools.takewhile(lambda hi: hi < len(TOKENS), itertools.accumulate(calls)), len(TOKENS)]
    for lo, hi in itertools.pairwise((0, *bounds)):
        step.run(lo, hi, 0, num_layers)
    step.verify(0, len(TOKENS))
    return step


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", OTHERS)
@torch.inference_mode()
def test_rows_of_all_families_have_the_same_bits_in_any_calls_and_threads(family, dtype):
    """Past the windows, which are of 8 positions."""
    model, before = tiny_model(family, kernels="native", dtype=dtype), torch.get_num_threads()
    expected = run_in_calls(model.new_step(30, 40), 4, *[1] * 30)
    try:
        for num_threads, calls in ((1, [30]), (1, [5] * 6), (2, [3, 4, 9])):
            torch.set_num_threads(num_threads)
            step = run_in_calls(model.new_step(30, 40), 4, *calls)
            for found, told in ((step.hidden, expected.hidden), (step.logits, expected.logits)):
                assert torch.equal(found, told), (num_threads, calls)
            assert torch.equal(step.cache.kv, expected.cache.kv)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param({}, torch.float32, id="float32"),
        pytest.param({}, torch.bfloat16, id="bfloat16"),
        pytest.param(RESTS, torch.float32, id="rests"),
    ],
)
@pytest.mark.parametrize("family", OTHERS)
@torch.inference_mode()
def test_native_and_eager_kernels_compute_the_same_numbers_for_all_families(family, sizes, dtype):
    lm = tiny_lm(family, **sizes).to(dtype)
    ours, theirs = (DecoderModel(lm, kernels).new_step(30, 60) for kernels in ("native", "eager"))
    assert isinstance(ours, NativeStep)
    assert isinstance(theirs, EagerStep)
    torch.testing.assert_close(ours.prefill(TOKENS[:20]).logits, theirs.prefill(TOKENS[:20]).logits, **CLOSE[dtype])
    for step in (ours, theirs):
        step.begin(20)
        step.put(0, TOKENS)
        for layer in range(4):
            step.run(0, 2, layer, layer + 1)
            step.run(2, 30, layer, layer + 1)
        step.verify(0, 30)
    torch.testing.assert_close(ours.hidden, theirs.hidden, **CLOSE[dtype])
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE[dtype])


def random_weights(seed: int) -> Weights:
    """Weights of a model of no family, with each of what layers may have or not, drawn."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def some(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    def maybe(*shape: int) -> torch.Tensor | None:
        return draw.choice([None, some(*shape, scale=0.5)])

    num_heads, num_groups, head_dim, d, width = draw.choice([(4, 2, 8, 32, 48), (3, 1, 18, 33, 45), (2, 2, 20, 42, 51)])
    is_gated, is_over_heads, is_layer_norm = (draw.random() < chance for chance in (0.6, 0.4, 0.4))
    has_norms = [draw.random() < 0.7 for _ in range(5)]
    num_entered = (1 + is_gated) * width

    def layer() -> LayerWeights:
        norms = [some(n, scale=0.5) + 1.0 for n in (d, d, d, d)]
        at_input, before_mlp, of_attention, of_mlp = (
            norm if has else None for norm, has in zip(norms, has_norms, strict=False)
        )
        q_len, k_len = (num_heads * head_dim, num_groups * head_dim) if is_over_heads else (head_dim, head_dim)
        return LayerWeights(
            input_norm=at_input,
            qkv=some((num_heads + 2 * num_groups) * head_dim, d),
            qkv_bias=maybe((num_heads + 2 * num_groups) * head_dim),
            q_norm=some(q_len) + 1.0 if has_norms[4] else None,
            k_norm=some(k_len) + 1.0 if has_norms[4] else None,
            o=some(d, num_heads * head_dim),
            post_norm=before_mlp,
            gate_up=some(num_entered, d),
            down=some(d, width),
            input_norm_bias=maybe(d) if at_input is not None else None,
            o_bias=maybe(d),
            attention_out_norm=of_attention,
            post_norm_bias=maybe(d) if before_mlp is not None else None,
            gate_up_bias=maybe(num_entered),
            down_bias=maybe(d),
            mlp_out_norm=of_mlp,
        )

    shape = LayerShape(
        num_heads,
        num_groups,
        head_dim,
        1e-5,
        norm="layer" if is_layer_norm else "rms",
        norm_offset=0.0 if is_layer_norm else draw.choice([0.0, 1.0]),
        activation=draw.choice(["silu", "gelu", "gelu_tanh"]),
        is_gated=is_gated,
        attention_scale=draw.choice([None, 0.3]),
        attention_cap=draw.choice([None, 2.0]),
        residual_scale=draw.choice([1.0, 0.6]),
        is_parallel=draw.random() < 0.4,
    )
    has_bias = is_layer_norm
    layers = tuple(layer() for _ in range(3))
    if not has_bias:
        layers = tuple(dataclasses.replace(layer, input_norm_bias=None, post_norm_bias=None) for layer in layers)
    rotary_width, angles = draw.choice([head_dim, head_dim // 2 // 2 * 2]), torch.arange(120)[:, None].float()
    tables = []
    for base in (10.0, 1000.0):
        turned = angles * base ** (-torch.arange(rotary_width // 2) / rotary_width)
        tables.append((torch.cat((turned, turned), -1).cos(), torch.cat((turned, turned), -1).sin()))
    kinds = [LayerKind(draw.choice([None, 1, 5, 11]), draw.choice([None, 0, 1])) for _ in layers]
    return Weights(
        embedding=some(65, d, scale=1.0),
        layers=layers,
        norm=some(d) + 1.0,
        head=Head((some(65, d),)),
        rotaries=tuple(tables),
        shape=shape,
        context_len=100,
        kinds=tuple(kinds),
        norm_bias=some(d) if has_bias else None,
        embedding_scale=draw.choice([1.0, 3.0]),
        logits=LogitShape(draw.choice([1.0, 1.7]), draw.choice([None, 4.0])),
    )


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 30))])
@torch.inference_mode()
def test_any_mixture_of_options_agrees_with_the_eager_kernels_and_keeps_bits(seed):
    weights = random_weights(seed)

    def no_prefill(*_):
        raise AssertionError

    ours, theirs = (Steps(weights, no_prefill, kernels).new(30, 40) for kernels in ("native", "eager"))
    run_in_calls(ours, 3, 7, 1)
    run_in_calls(theirs, 3, 30)
    close = 1e-5 * theirs.hidden.abs().max().item()
    torch.testing.assert_close(ours.hidden, theirs.hidden, rtol=1e-3, atol=close)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-3)
    alone = run_in_calls(Steps(weights, no_prefill, "native").new(30, 40), 3, *[1] * 30)
    assert torch.equal(alone.logits, ours.logits)
    prompted = Steps(weights, no_prefill, "native").new(30, 40)
    assert torch.equal(prompted.prefill(TOKENS).logits, ours.logits[-1])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@torch.inference_mode()
def test_windows_of_a_long_prompt_keep_bits_in_blocks_and_agree_with_the_eager_kernels(dtype, monkeypatch):
    lm = tiny_lm("gemma2", sliding_window=100).to(dtype)
    prompt = [(5 * i + i // 7) % 97 for i in range(700)]
    model = DecoderModel(lm, "native")
    theirs = DecoderModel(lm, "eager").new_step(8, 720).prefill(prompt).logits
    found = []
    for num_rows in (700, 256, 33):
        monkeypatch.setattr(native, "BLOCK_LEN", num_rows)
        step = model.new_step(8, 720)
        found.append((step.prefill(prompt).logits, step.cache.kv))
    torch.testing.assert_close(found[0][0], theirs, **CLOSE[dtype])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@torch.inference_mode()
def test_a_row_sees_nothing_before_its_window():
    """What left the windows of all layers of a model changes no bit, whatever it was."""
    model = tiny_model("mistral", kernels="native", num_layers=1, sliding_window=8)
    steps = [model.new_step(8, 80) for _ in range(3)]
    for step, first in zip(steps, (1, 2, 1), strict=True):
        step.prefill([first] * 40 + TOKENS[: 7 + (step is steps[2])])
        step.begin(47)
        step.put(0, [5])
        step.run(0, 1, 0, 1)
    assert torch.equal(steps[0].hidden[0], steps[1].hidden[0])
    shorter = model.new_step(8, 80)
    shorter.prefill([1] * 40 + TOKENS[:6])
    shorter.begin(46)
    shorter.put(0, [5])
    shorter.run(0, 1, 0, 1)
    assert not torch.equal(shorter.hidden[0], steps[0].hidden[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", OTHERS)
@torch.inference_mode()
def test_all_families_give_vanillas_bits_and_in_float32_the_tokens_of_transformers(family, dtype):
    """Past the windows."""
    lm = tiny_lm(family).to(dtype)
    model, policy = DecoderModel(lm, "native"), Policy((2, 3), (0.02, 0.02), 5)
    request = Request(TOKENS[:12], 32, record_logits=True)
    vanilla = generate(model, request, Policy(rows=policy.width))
    heads = drafters_of(policy, random_heads(model, policy.exits))
    adadecode = generate(model, request, policy, heads)
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)
    assert adadecode.generation.num_drafted > 0
    if dtype == torch.float32:
        theirs = generate_with_transformers(model, request)
        assert vanilla.generation.output_token_ids == theirs.generation.output_token_ids


@pytest.mark.parametrize(
    ("which", "exact", "most"),
    [
        (0, lambda x: x * torch.sigmoid(x), 5e-7),
        (1, lambda x: x * torch.special.log_ndtr(x).exp(), 4e-6),
        (2, lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)), 4e-6),
        (3, torch.tanh, 2e-7),
    ],
    ids=["silu", "gelu", "gelu_tanh", "tanh"],
)
def test_functions_are_as_near_as_native_cpp_says(which, exact, most):
    small = torch.logspace(-10, 0, 10001)
    x = torch.cat((torch.linspace(-6, 40, 100001), small, -small))
    found = torch.empty_like(x)
    load_library().adadecode_function(which, x.data_ptr(), len(x), found.data_ptr())
    expected = exact(x.double())
    assert ((found - expected).abs() <= most * expected.abs()).all()
    odd = torch.tensor([float("nan"), float("inf"), -1e30, 1e30, 0.0])
    found = torch.empty_like(odd)
    load_library().adadecode_function(which, odd.data_ptr(), len(odd), found.data_ptr())
    of_nan, high, low, _, of_zero = found.tolist()
    assert of_nan != of_nan
    assert high == (1.0 if which == 3 else float("inf"))
    assert low == -1.0 if which == 3 else -1e-6 <= low <= 0.0
    assert of_zero == 0.0
