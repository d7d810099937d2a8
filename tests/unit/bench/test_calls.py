"""A recording step: it counts what a generation asks for, and changes nothing."""

import pytest
import torch

from adadecode.bench.calls import RecordingModel, used_tests
from adadecode.bench.synthetic import synthetic_heads, synthetic_lm, synthetic_prompts
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import VANILLA, Policy
from adadecode.model.decoder import DecoderModel
from tests.unit.bench.test_bench import SMALL


@pytest.mark.parametrize("policy", [Policy((2, 4, 6), (0.6, 0.6, 0.6), 5, 0.9, 0.4), VANILLA], ids=["all", "vanilla"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_a_recording_step_counts_every_layer_run_and_changes_no_output(kernels, policy):
    model = DecoderModel(synthetic_lm("llama-160m", dtype=torch.bfloat16, device="cpu", **SMALL), kernels)
    heads = synthetic_heads(model, (2, 4, 6), "shortlist", 0.5)
    recording = RecordingModel(model)
    prompt = synthetic_prompts(model.vocab_size, 1, 20)[0] * 2
    plain, watched = (
        generate(of, Request(prompt, 40), policy, drafters_of(policy, heads)).generation for of in (model, recording)
    )
    assert watched.output_token_ids == plain.output_token_ids
    calls = recording.step.calls
    segments = {call: count for call, count in calls.items() if call.kind == "layers"}
    assert sum(count * (call.stop - call.start) for call, count in segments.items()) == watched.layers_run
    assert sum(count for call, count in calls.items() if call.kind == "verify") == watched.num_rounds
    entered = sum(count * call.rows for call, count in calls.items() if call.kind == "enter")
    assert entered == watched.num_rounds + watched.num_drafted
    assert {call.head for call in recording.step.tests} == ({"gate", "shortlist"} if policy.exits else set())


@pytest.mark.parametrize(
    ("head", "gate", "names"), [("full", 0.0, {"full"}), ("shortlist", 0.3, {"gate", "shortlist"})]
)
def test_the_heads_a_policy_may_test_are_known_without_a_generation(head, gate, names):
    model = DecoderModel(synthetic_lm("llama-160m", dtype=torch.float32, device="cpu", **SMALL))
    used = used_tests(synthetic_heads(model, (3, 5), head, gate), (3, 5), 8)
    assert {(call.start, call.head) for call in used} == {(e, name) for e in (3, 5) for name in names}
