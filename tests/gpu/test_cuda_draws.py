"""Sampling on a CUDA device: graphs draw what torch does from the same logits, and outputs stay vanilla's."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch

from adadecode.bench.synthetic import synthetic_prompts
from adadecode.engine.decode import decode
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import OneExit, Policy
from adadecode.errors import RowsDependentError, UnsupportedModelError
from adadecode.kernels.graphed import GraphedStep
from adadecode.kernels.sampling import Draw, draw_rows
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import ExitTest, Head
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.model.head_tensors import original_heads
from tests.gpu.models import make_lm
from tests.models import random_heads
from tests.unit.model.test_own_layers import DENSE, EXPERTS, other_lm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]

DRAWS = (
    Draw(1.0, key=3),
    Draw(0.7, key=(1 << 64) - 1, first_position=5),
    Draw(1.5, top_p=0.9, key=4),
    Draw(1.5, top_p=0.9, key=5, first_position=9),
    Draw(0.9, top_k=40, top_p=0.7, min_p=0.02, key=6),
)
PROMPT = [*range(1, 20)]
KERNELS = ("graphs", "eager")


@contextmanager
def no_captures(step: DecodeStep, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """What runs within may replay graphs of `step` but capture none."""

    def refuse(*_: object) -> None:
        raise AssertionError("a capture after the step was prepared")

    with monkeypatch.context() as planted:
        if isinstance(step, GraphedStep):
            planted.setattr(step, "_capture", refuse)
        yield


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_steps_draw_what_the_logits_at_hand_give_on_a_processor_too(kernels, dtype, monkeypatch):
    model = DecoderModel(make_lm(dtype), kernels)
    head = Head((model.weights.head.matrices[0][:500].contiguous(),), torch.randperm(500, device=model.device))
    step = model.new_step(8, 60)
    step.prepare((model.num_layers,), [ExitTest(head)])
    greedy = None
    for draw in (None, *DRAWS, *DRAWS[::-1], None):
        step.draw_by(draw)
        first = step.prefill(PROMPT)
        with no_captures(step, monkeypatch):
            step.begin(len(PROMPT))
            step.put(0, [4, 5, 6, 7])
            step.run(0, 4, 0, model.num_layers)
            verified, drafts = step.verify(0, 4), step.test(head, 1, 3)
        if draw is None:
            greedy = greedy or (first[:2], verified, drafts)
            assert (first[:2], verified, drafts) == greedy
            assert verified[0] == step.logits[:4].argmax(dim=-1).tolist()
            continue
        for device in ("cuda", "cpu"):  # the same numbers on both
            places = torch.arange(4, device=device) + len(PROMPT) + 1 - draw.first_position
            expected = draw_rows(step.logits[:4].to(device), draw, places)
            assert verified == (expected.token_ids.tolist(), expected.logits.tolist())
            expected = draw_rows(first.logits[None].to(device), draw, places[:1] - 1)
            assert first[:2] == (int(expected.token_ids), float(expected.logits))
        assert drafts == step.test(head, 0, 4)[1:3]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_drawn_outputs_of_every_method_are_vanillas_bit_for_bit(kernels, dtype):
    model = DecoderModel(make_lm(dtype), kernels)
    exits = (2, 4)
    heads = random_heads(model, exits)
    policy = Policy(exits, (0.2, 0.2), 5, ngram=0.2, layerskip=OneExit(exits[0], 4))
    [prompt] = synthetic_prompts(model.vocab_size, 1, 40, 0)
    outputs = set()
    for draw in (DRAWS[0], DRAWS[3], DRAWS[4]):
        request = Request(prompt, 60, record_logits=True, draw=draw)
        vanilla = decode(model, METHODS["vanilla"], request, policy)
        outputs.add(tuple(vanilla.generation.output_token_ids))
        for name in ("adadecode", "ngram", "layerskip"):
            found = decode(model, METHODS[name], request, policy, heads)
            assert found.generation.output_token_ids == vanilla.generation.output_token_ids
            assert torch.equal(found.logits, vanilla.logits)
            assert found.generation.num_drafted > 0
    assert len(outputs) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*DENSE, *EXPERTS])
def test_a_models_own_layers_keep_the_contract_or_are_refused(kind, dtype):
    lm = other_lm(kind, dtype, **(DENSE | EXPERTS)[kind]).to("cuda")
    try:
        model = DecoderModel(lm, "transformers")
        check_rows_independent(model, 8, (80,))
    except (RowsDependentError, UnsupportedModelError) as error:
        pytest.skip(f"refused: {error}")
    policy = Policy((1, 3), (0.01, 0.01), 7)
    for draw in (None, DRAWS[0]):
        request = Request(PROMPT, 60, record_logits=True, draw=draw)
        vanilla = generate(model, request, Policy(rows=policy.width))
        found = generate(model, request, policy, drafters_of(policy, original_heads(model, policy.exits)))
        assert found.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(found.logits, vanilla.logits)
        assert found.generation.num_drafted > 0
