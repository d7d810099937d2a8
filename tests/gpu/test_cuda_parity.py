"""The parity contract on a CUDA device; needs neither ray nor datasets."""

import pytest
import torch

from adadecode.engine.generate import generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy, step_width
from adadecode.model.decoder import DecoderModel, load_model
from tests.models import random_heads, tiny_lm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_independent(dtype):
    model = DecoderModel(tiny_lm(num_layers=3).to("cuda", dtype))
    for width in (8, 16):
        check_rows_independent(model, width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_drafts", [0, 3, 5, 7])
def test_bits_hold_past_512_tokens(dtype, max_drafts):
    model = DecoderModel(tiny_lm(num_layers=4).to("cuda", dtype))
    policy = Policy((1, 2, 3), (0.05,) * 3, max_drafts)
    common = {"width": step_width(max_drafts), "max_new_tokens": 560, "record_logits": True}
    prompt = [i % 97 for i in range(60)]
    vanilla = generate(model, prompt, **common)
    adadecode = generate(model, prompt, policy=policy, drafter=random_heads(model, policy.exits), **common)
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_embedded_model_keeps_its_bits(dtype):
    model, tokenizer = load_model("demo", dtype=dtype, device="cuda")
    check_rows_independent(model, 8)
    prompt = tokenizer("Question: Ann has 3 pens and buys 4 more. How many pens has she?\nAnswer:")["input_ids"]
    policy = Policy((4, 8, 12), (0.05,) * 3, 5)
    common = {"width": 8, "max_new_tokens": 200, "record_logits": True}
    vanilla = generate(model, prompt, **common)
    adadecode = generate(model, prompt, policy=policy, drafter=random_heads(model, policy.exits), **common)
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)
