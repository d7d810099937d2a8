"""Memory, caches and attention on a CUDA device: what the fakes of tests/unit/kernels/test_graphed.py stand for."""

import gc

import pytest
import torch
from torch.nn.attention import SDPBackend

from adadecode.bench.synthetic import synthetic_lm, synthetic_prompts
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.evaluation.failures import Failure, result_or_failure
from adadecode.kernels import graphed
from adadecode.kernels.graphed import capture, capture_stream
from adadecode.model.decoder import DecoderModel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}
TOO_MUCH = 1 << 50  # bytes


@pytest.fixture
def model():
    lm = synthetic_lm("llama-160m", dtype=torch.bfloat16, device="cuda", agreement=0.8, **SIZES)
    yield DecoderModel(lm, "graphs")
    gc.collect()
    torch.cuda.empty_cache()


def decode(model: DecoderModel, length: int = 30, width: int = 8) -> torch.Tensor:
    """The logits of 20 tokens after a prompt of `length`."""
    [prompt] = synthetic_prompts(model.vocab_size, 1, length, 0)
    logits = generate(model, Request(prompt, 20, record_logits=True), Policy(rows=width)).logits
    assert logits is not None
    return logits


def kept_columns(model: DecoderModel) -> int:
    """The columns of the caches that its steps keep."""
    kept = model.steps._graphed
    assert kept is not None
    return sum(kept.kept_columns)


def too_much() -> torch.Tensor:
    return torch.empty(TOO_MUCH, dtype=torch.uint8, device="cuda")


def test_memory_that_runs_out_in_a_capture_is_told_and_the_process_captures_and_decodes_on(model):
    expected = decode(model)
    outer = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            capture(too_much, torch.cuda.graph_pool_handle(), 0)
        assert torch.cuda.current_stream() == outer
    failure = result_or_failure("a sample", lambda: capture(too_much, torch.cuda.graph_pool_handle(), 0), model)
    assert isinstance(failure, Failure)
    assert failure.is_out_of_memory
    assert torch.equal(decode(model), expected)


def test_a_step_whose_capture_found_no_memory_works_when_there_is_some(model, monkeypatch):
    expected = decode(model)
    model.drop_steps()
    segment, failures = graphed.GraphedStep.segment, [0]

    def full_at_first(step: graphed.GraphedStep, start: int, stop: int) -> None:
        if torch.cuda.is_current_stream_capturing() and not failures[0]:
            failures[0] += 1
            too_much()
        segment(step, start, stop)

    monkeypatch.setattr(graphed.GraphedStep, "segment", full_at_first)
    found = result_or_failure("a sample", lambda: decode(model), model)
    assert failures == [1]
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, expected)


def test_widths_share_a_cache_and_what_is_let_go_of_is_free_again(model):
    wide, narrow = model.new_step(8, 100), model.new_step(1, 100)
    assert wide.cache is narrow.cache
    assert torch.equal(decode(model), decode(model)), "one after the other leaves no trace"
    before = decode(model)
    decode(model, width=1)
    assert torch.equal(decode(model), before)
    del wide, narrow
    model.drop_steps()
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        for length in (30, 300, 900, 2000, 3900):
            decode(model, length)
            decode(model, length, width=1)
        assert 0 < kept_columns(model) <= 2 * 4160
    model.drop_steps()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= held + (1 << 20)


def test_bits_are_the_same_after_a_bucket_was_let_go_of(model):
    expected = [decode(model, length) for length in (30, 900, 3900)]
    for _ in range(2):
        for length in (2000, 2500, 3000, 3500):
            decode(model, length)
        assert all(torch.equal(decode(model, n), logits) for n, logits in zip((30, 900, 3900), expected, strict=True))


def test_captures_add_no_stream_and_workspaces_go_with_the_last_graph(model):
    decode(model)
    stream = capture_stream(torch.cuda.current_device())
    decode(model, 900)
    assert capture_stream(torch.cuda.current_device()) is stream
    assert len(graphed._alive) > 0
    model.drop_steps()
    gc.collect()
    assert len(graphed._alive) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_pinned_backend_computes_the_attention_of_steps(dtype):
    """Its kernels are named for it: what a profiler sees is what the worker records."""
    lm = synthetic_lm("llama-160m", dtype=dtype, device="cuda", agreement=0.8, **SIZES)
    model = DecoderModel(lm, "graphs")
    assert model.steps.attention in (SDPBackend.EFFICIENT_ATTENTION.name, SDPBackend.MATH.name)
    step = model.new_step(8, 100)
    step.prefill([1, 2, 3])
    step.begin(3)
    step.put(0, [4])
    step.run(0, 1, 0, 4)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step.run(0, 1, 0, 4)
        torch.cuda.synchronize()
    names = [event.key.lower() for event in profile.key_averages()]
    is_efficient = any("fmha" in name or "efficient" in name for name in names)
    assert is_efficient == (model.steps.attention == SDPBackend.EFFICIENT_ATTENTION.name), names
    assert not any("flash" in name or "cudnn" in name for name in names), names
