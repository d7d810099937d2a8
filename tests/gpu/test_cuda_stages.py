"""A model whose layers are in stages, on CUDA: on two GPUs where there are two, else both stages on the one there is."""

import pytest
import torch

from adadecode.bench.synthetic import synthetic_prompts
from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.engine.invariance import check_every_count, check_rows_independent, check_ties
from adadecode.engine.policy import OneExit, Policy
from adadecode.engine.transformers import generate_with_transformers
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.graphed import GraphedStep
from adadecode.kernels.staged import StagedStep
from adadecode.methods import METHODS, names_that_owe
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.model.placement import place
from adadecode.settings import Kernels, ModelSettings
from tests.gpu.models import make_lm
from tests.models import block_heads, medusa_heads, random_heads

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.skipif(not NUM_GPUS, reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]
DEVICES = [torch.device("cuda", 0), torch.device("cuda", 1 if NUM_GPUS > 1 else 0)]
EXITS = (2, 4)


def make_model(num_stages: int, dtype: torch.dtype, kernels: Kernels) -> DecoderModel:
    lm = make_lm(dtype)
    return DecoderModel(lm, kernels, stages=place(lm, DEVICES[:num_stages]))


@pytest.mark.parametrize("kernels", ["graphs", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_exact_method_has_vanillas_bits_over_stages_which_are_those_of_one(dtype, kernels):
    digests = []
    for num_stages in (1, 2):
        model = make_model(num_stages, dtype, kernels)
        assert len(model.weights.stages) == (num_stages if num_stages > 1 else 0)
        step = model.new_step(8, 200)
        parts = step._steps if isinstance(step, StagedStep) else [step]
        assert len(parts) == num_stages
        assert {type(part) for part in parts} == {GraphedStep if kernels == "graphs" else EagerStep}
        draft = make_model(1, dtype, kernels)
        policy = Policy(EXITS, (0.0, 0.0), 5, ngram=0.3, layerskip=OneExit(3, 4), draft_gamma=0.0)
        heads, medusa = random_heads(model, (1, 2, 3, 4, 5)), medusa_heads(model, noise=0.0)
        [prompt] = synthetic_prompts(model.vocab_size, 1, 60, 0)
        request = Request(prompt, 40, record_logits=True)
        vanilla = decode(model, METHODS["vanilla"], request, policy)
        accepted = 0
        for name in names_that_owe("exact"):
            found = decode(model, METHODS[name], request, policy, heads, draft, medusa)
            assert found.generation.output_token_ids == vanilla.generation.output_token_ids, name
            assert torch.equal(found.logits, vanilla.logits), name
            accepted += found.generation.num_accepted
        assert accepted > 0
        digests.append(vanilla.logits)
    if torch.cuda.get_device_name(DEVICES[0]) == torch.cuda.get_device_name(DEVICES[1]):
        assert torch.equal(*digests)


def test_heads_with_a_layer_of_their_own_are_tested_at_home_over_stages():
    model = make_model(2, torch.bfloat16, "graphs")
    [prompt] = synthetic_prompts(model.vocab_size, 1, 40, 0)
    request, policy = Request(prompt, 30, record_logits=True), Policy(EXITS, (0.0, 0.0), 5)
    expected = decode(model, METHODS["vanilla"], request, policy)
    found = decode(model, METHODS["adadecode"], request, policy, block_heads(model, EXITS, num_tokens=2048))
    assert found.generation.num_drafted > 0
    assert torch.equal(found.logits, expected.logits)


def test_rows_are_independent_and_ties_go_to_the_lowest_over_stages():
    model = make_model(2, torch.bfloat16, "graphs")
    check_rows_independent(model, 8)
    check_every_count(model, 8, 64)
    check_ties(model, 8)


def test_transformers_generates_over_stages():
    one, staged = (make_model(num_stages, torch.float32, "eager") for num_stages in (1, 2))
    request = Request(synthetic_prompts(one.vocab_size, 1, 40, 0)[0], 20)
    found = [generate_with_transformers(model, request).generation.output_token_ids for model in (one, staged)]
    assert found[0] == found[1]


@pytest.mark.skipif(NUM_GPUS < 2, reason="one GPU on this machine")
def test_a_model_that_is_loaded_on_two_gpus_decodes_and_each_holds_its_part():
    model, _ = load_model(ModelSettings(model="demo", device="cuda", gpus_per_worker=2))
    assert [str(device) for device in model.devices] == ["cuda:0", "cuda:1"]
    check_rows_independent(model, 8)
    assert all(torch.cuda.memory_allocated(device) > 0 for device in model.devices)
