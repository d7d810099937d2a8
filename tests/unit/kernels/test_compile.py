"""`--kernels compile`: the eager layer through torch.compile, once for all layers; slow, because of the compiler."""

import pytest
import torch

from adadecode.engine.generate import generate
from adadecode.engine.policy import Policy
from adadecode.kernels.eager import EagerStep
from adadecode.model.decoder import DecoderModel
from tests.models import needs_compiler, random_heads, tiny_lm

pytestmark = [
    pytest.mark.slow,
    needs_compiler,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # torch's own
]


@torch.inference_mode()
def test_compiled_layers_compute_what_eager_ones_do_and_keep_parity():
    lm = tiny_lm("qwen3", num_layers=4)
    model, eager = DecoderModel(lm, "compile"), DecoderModel(lm, "eager")
    assert model.kernels == "compile"
    assert isinstance(model.new_step(8, 40), EagerStep)
    common = {"width": 8, "max_new_tokens": 30, "record_logits": True}
    prompt = [5, 6, 7] * 3
    vanilla, theirs = generate(model, prompt, **common), generate(eager, prompt, **common)
    torch.testing.assert_close(vanilla.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    policy = Policy((1, 2, 3), (0.05,) * 3, 5, reject=0.1, ngram=0.2)
    adadecode = generate(model, prompt, policy=policy, drafter=random_heads(model, policy.exits), **common)
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)
    assert adadecode.generation.num_accepted > 0
