"""`--kernels compile`: the eager layer through torch.compile, once for all layers; slow, because of the compiler."""

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
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
    request = Request([5, 6, 7] * 3, 30, record_logits=True)
    vanilla, theirs = generate(model, request), generate(eager, request)
    torch.testing.assert_close(vanilla.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    policy = Policy((1, 2, 3), (0.05,) * 3, 5, reject=0.1, ngram=0.2)
    adadecode = generate(model, request, policy, drafters_of(policy, random_heads(model, policy.exits)))
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)
    assert adadecode.generation.num_accepted > 0
