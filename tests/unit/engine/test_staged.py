"""A model whose layers are on several devices: the bits of one device, in every exact method, and no tensor elsewhere.

No two devices are at hand: stages are all on the CPU where numbers are compared, and one is on `meta`, which has none,
where it is asked on which device each tensor is.
"""

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adadecode.engine.decode import decode
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_every_count, check_rows_independent, check_ties
from adadecode.engine.policy import OneExit, Policy
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import UsageError
from adadecode.kernels.choose import Steps
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.staged import StagedStep
from adadecode.kernels.step import Prefilled
from adadecode.kernels.weights import ExitTest
from adadecode.methods import METHODS, names_that_owe
from adadecode.model.decoder import DecoderModel, prefill
from adadecode.model.parts import read_weights
from adadecode.model.placement import check_device, devices_of, place
from adadecode.settings import ModelSettings
from tests.models import block_heads, medusa_heads, random_gates, random_heads, store_of, tiny_lm, tiny_model

CPU, META = torch.device("cpu"), torch.device("meta")
PROMPT = [5, 3, 8, 3, 8, 3, 5, 3]
EXITS = (1, 2, 4)


def both(num_stages: int, **settings: Any) -> tuple[DecoderModel, DecoderModel]:
    """One model on one device, and in stages."""
    return tiny_model(num_layers=6, **settings), tiny_model(num_layers=6, num_stages=num_stages, **settings)


def test_every_exact_method_has_the_tokens_logits_and_rounds_of_one_device():
    dtype = torch.bfloat16
    request = Request(PROMPT, 14, record_logits=True)
    policy = Policy(
        EXITS, (0.02,) * 3, 6, reject=0.3, ngram=0.3, ngram_store=True, layerskip=OneExit(3, 4), draft_gamma=0.01
    )
    found = []
    for model in both(3, dtype=dtype):
        draft = tiny_model(num_layers=2, dtype=dtype)
        heads = random_heads(model, (1, 2, 3, 4, 5), gates=random_gates(model, (1, 2, 3, 4, 5)), gate=0.5)
        heads = heads.with_store(store_of(draft, [PROMPT]))
        medusa = medusa_heads(model, noise=0.0)
        methods = (METHODS[name] for name in ("vanilla", *names_that_owe("exact")))
        found.append([decode(model, method, request, policy, heads, draft, medusa) for method in methods])
    for one, staged in zip(*found, strict=True):
        assert staged.generation.output_token_ids == one.generation.output_token_ids
        assert staged.generation.num_accepted == one.generation.num_accepted
        assert torch.equal(staged.logits, one.logits)
    assert sum(decoded.generation.num_accepted for decoded in found[1]) > 0


@pytest.mark.parametrize(("family", "exits"), [("llama", (3,)), ("qwen3", (2, 5))])
def test_heads_with_a_layer_of_their_own_propose_what_they_do_on_one_device(family, exits):
    rounds = []
    for model in both(2, family=family, tied=True):
        policy = Policy(exits, (0.0,) * len(exits), 4)
        request = Request(PROMPT, 24, record_logits=True)
        decoded = generate(model, request, policy, drafters_of(policy, block_heads(model, exits)))
        rounds.append((decoded.generation.output_token_ids, decoded.generation.num_accepted, decoded.logits.tolist()))
    assert rounds[0] == rounds[1]


@pytest.mark.parametrize("exits", [(1, 4), (2, 3, 5)])
def test_whatever_a_graph_is_captured_for_is_run_before_the_prompt(exits, monkeypatch):
    """A graph is captured where a segment is run for the first time: never while a clock runs."""
    ran, ready = list[tuple[int, int, int]](), set[tuple[int, int, int]]()
    segment, prefill = EagerStep.segment, EagerStep.prefill

    def noted(step: EagerStep, start: int, stop: int) -> None:
        ran.append((id(step), start, stop))
        segment(step, start, stop)

    def marked(step: EagerStep, prompt_ids: list[int]) -> Prefilled:
        ready.update(ran)
        ran.clear()
        return prefill(step, prompt_ids)

    monkeypatch.setattr(EagerStep, "segment", noted)
    monkeypatch.setattr(EagerStep, "prefill", marked)
    model, policy = tiny_model(num_layers=6, num_stages=3), Policy(exits, (0.0,) * len(exits), 4)
    heads = block_heads(model, exits)
    ready.clear()
    generate(model, Request(PROMPT, 12), policy, drafters_of(policy, heads))
    assert len(ready) >= len(exits) + 3
    assert set(ran) == ready


def test_rows_are_independent_and_ties_go_to_the_lowest_over_stages():
    model = tiny_model(num_layers=5, num_stages=2)
    assert isinstance(model.new_step(8, 40), StagedStep)
    check_rows_independent(model, 8)
    check_every_count(model, 8, 64)
    check_ties(model, 8)


def test_transformers_own_generate_has_the_same_tokens_over_stages():
    one, staged = (generate_with_transformers(model, Request(PROMPT, 12)) for model in both(3))
    assert staged.generation.output_token_ids == one.generation.output_token_ids


def over_two_devices(**settings: Any) -> tuple[Any, tuple[Any, ...]]:
    """A causal LM with half of its layers on `meta`, and its stages."""
    lm = tiny_lm(num_layers=4, **settings).eval().requires_grad_(False)
    return lm, place(lm, [CPU, META])


@pytest.mark.parametrize("tied", [False, True])
def test_each_layer_with_its_cache_is_on_the_device_of_its_stage_and_the_rest_at_home(tied):
    lm, stages = over_two_devices(tied=tied)
    weights = read_weights(lm, stages)
    cache = weights.new_cache(64)
    for stage in stages:
        for idx in range(stage.start, stage.stop):
            assert {tensor.device for tensor in vars(weights.layers[idx]).values() if tensor is not None} == {
                stage.device
            }
            assert {tensor.device for tensor in cache.layer(idx)} == {stage.device}
    assert [stage.device for stage in stages] == [CPU, META]
    assert weights.device == CPU
    home = (weights.embedding, weights.norm, *weights.head.tensors, *weights.rotaries[0])
    assert {tensor.device for tensor in home} == {CPU}
    assert (weights.head.matrices[0] is weights.embedding) == tied


@pytest.mark.parametrize(("family", "exits"), [("llama", (2,)), ("qwen3", (1, 3))])
def test_no_operation_mixes_two_devices(family, exits):
    """What computes on two devices at once raises in a FakeTensorMode, which has devices and no numbers."""
    lm, stages = over_two_devices(family=family)
    weights = read_weights(lm, stages)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        step = Steps(weights, functools.partial(prefill, lm, weights), "eager").new(8, 40)
        assert isinstance(step, StagedStep)
        step.prepare((*exits, 4), [ExitTest(weights.head)])
        assert step._home.prompt_logits([1, 2, 3]).device == CPU
        step.begin(3)
        step.put(0, [3, 4])
        for start, stop in pairwise((0, *exits, 4)):
            step.run(0, 2, start, stop)
            assert step.hidden.device == CPU
        assert step._home.proposals(weights.head).device == step._home.verdicts().device == CPU
        assert lm(torch.zeros(1, 3, dtype=torch.long), use_cache=False).logits.device == CPU


def test_a_mistake_of_placement_would_be_seen():
    lm, stages = over_two_devices()
    lm.model.layers[2]._forward_pre_hooks.clear()
    weights = read_weights(lm, stages)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        step = Steps(weights, functools.partial(prefill, lm, weights), "eager").new(8, 40)
        assert isinstance(step, StagedStep)
        with pytest.raises(RuntimeError, match="device"):
            step._home.prompt_logits([1, 2, 3])


def test_gpus_that_are_not_there_or_have_no_layer_are_refused(monkeypatch):
    settings = ModelSettings(device="cuda", gpus_per_worker=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"--gpus-per-worker 4: this process sees 2; give 1\.\.2"):
        check_device(settings)
    with pytest.raises(UsageError, match=r"--gpus-per-worker 4: the model has 3 layers, .* give 1\.\.3"):
        devices_of(settings, 3)
    assert [str(device) for device in devices_of(settings, 4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices_of(ModelSettings(device="cuda"), 3) == [torch.device("cuda")]
    with pytest.raises(ValueError, match="--gpus-per-worker 2: --device cpu has none; drop it, or give --device cuda"):
        ModelSettings(gpus_per_worker=2)
