"""What of the CUDA path can be switched off: graphs, by `--kernels eager` or where they fail, and compiled layers."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from adadecode.bench.synthetic import synthetic_prompts
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent, check_ties
from adadecode.engine.policy import Policy
from adadecode.engine.tally import Decoded
from adadecode.errors import KernelsError
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.graphed import GraphedStep
from adadecode.model.decoder import DecoderModel
from tests.gpu.models import make_lm
from tests.models import block_heads, random_heads

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POLICY = Policy((1, 2, 3), (0.3,) * 3, 5)


def decode_both(model: DecoderModel, policy: Policy = POLICY, num_new: int = 300) -> tuple[Decoded, Decoded]:
    """Vanilla and AdaDecode after one prompt, with logits."""
    [prompt] = synthetic_prompts(model.vocab_size, 1, 40, 0)
    request = Request(prompt, num_new, record_logits=True)
    heads = random_heads(model, policy.exits)
    return generate(model, request, Policy(rows=policy.width)), generate(
        model, request, policy, drafters_of(policy, heads)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eager_steps_keep_the_contract_without_a_graph_or_a_fused_call(dtype):
    lm = make_lm(dtype, num_hidden_layers=4)
    model = DecoderModel(lm, "eager")
    assert type(model.new_step(8, 40)) is EagerStep
    assert model.steps.attention == SDPBackend.MATH.name
    check_rows_independent(model, 8, (50, 400))
    check_ties(model, 8)
    vanilla, adadecode = decode_both(model)
    assert torch.equal(vanilla.logits, adadecode.logits)
    assert 0 < adadecode.generation.num_accepted < adadecode.generation.num_drafted
    found, expected = logits_after(model), logits_after(DecoderModel(lm, "graphs"))
    assert (found - expected).norm() < 0.05 * expected.norm()


@torch.inference_mode()
def logits_after(model: DecoderModel) -> torch.Tensor:
    """Logits `[2, V]` float32 after a prompt, and after one token more that is the same whatever the prompt's logits."""
    [prompt] = synthetic_prompts(model.vocab_size, 1, 40, 0)
    step = model.new_step(8, 41)
    first = step.prefill(prompt).logits.float().clone()
    step.begin(len(prompt))
    step.put(0, [5])
    step.run(0, 1, 0, model.num_layers)
    step.verify(0, 1)
    return torch.stack((first, step.logits[0].float()))


@torch.inference_mode()
def test_calls_that_follow_each_other_at_once_read_what_was_meant_for_each():
    """The host writes the next call's places while the device may not have begun the one before."""
    model = DecoderModel(make_lm(torch.float32, num_hidden_layers=4), "eager")
    slow, fast = (model.new_step(8, 200) for _ in range(2))
    for step in (slow, fast):
        step.prefill([1, 2, 3])
        step.begin(3)
        step.put(0, [4, 5, 6])
        for slot in range(3):
            if step is fast:
                torch.cuda._sleep(100_000_000)  # cycles, so that the host is far ahead
            step.run(slot, slot + 1, 0, 4)
    assert torch.equal(slow.hidden, fast.hidden)


def test_eager_steps_run_blocks():
    model = DecoderModel(make_lm(torch.bfloat16, num_hidden_layers=4), "eager")
    [prompt] = synthetic_prompts(model.vocab_size, 1, 40, 0)
    request, policy = Request(prompt, 60, record_logits=True), Policy((2,), (0.02,), 5)
    vanilla = generate(model, request, Policy(rows=policy.width))
    found = generate(model, request, policy, drafters_of(policy, block_heads(model, policy.exits)))
    assert torch.equal(vanilla.logits, found.logits)


def test_auto_does_without_graphs_where_a_capture_fails_and_the_device_is_as_good_as_before(monkeypatch):
    lm = make_lm(torch.bfloat16, num_hidden_layers=4)
    expected, _ = decode_both(DecoderModel(lm, "eager"))
    segment = GraphedStep.segment

    def refusing(step: GraphedStep, start: int, stop: int) -> None:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # no capture allows that
        segment(step, start, stop)

    with monkeypatch.context() as planted:
        planted.setattr(GraphedStep, "segment", refusing)
        model = DecoderModel(lm, "auto")
        (line,) = model.chosen_kernels.lines()
        assert line.startswith("kernels: eager, because CUDA graphs fail here (")
        assert "captur" in line
        found, adadecode = decode_both(model)
        with pytest.raises(KernelsError, match=r"--kernels graphs: CUDA graphs fail here .*; use --kernels eager"):
            DecoderModel(lm, "graphs")
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.logits, adadecode.logits)
    mended = DecoderModel(lm, "auto")
    assert (mended.kernels, mended.chosen_kernels.lines()) == ("graphs", [])
    vanilla, adadecode = decode_both(mended)
    assert torch.equal(vanilla.logits, adadecode.logits)
