"""Traces and replays on a CUDA device, where steps and graphs are shared by all requests of a shape."""

import random

import pytest
import torch

from adadecode.model.decoder import DecoderModel
from adadecode.records import Prompt
from adadecode.tuning.contenders import Contender
from adadecode.tuning.measure import CostStudy, random_candidate, replays_alike
from adadecode.tuning.replay import ModelFacts, replay
from adadecode.tuning.trace import Floors, TraceSpace, record
from tests.models import random_gates, random_heads, tiny_lm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),
]

EXITS = (1, 2, 3)
SPACE = TraceSpace(EXITS, max_drafts=4, floors=Floors((0.03, 0.03, 0.03), 0.03), max_new_tokens=24)
PROMPTS = [[5, 9, 11, 13], [7, 8, 7, 8, 7], list(range(3, 40)), [50, 51] * 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replay_makes_every_call_of_the_engine_with_the_same_answers(dtype):
    model = DecoderModel(tiny_lm().to("cuda", dtype), "graphs")
    heads = random_heads(model, EXITS, gates=random_gates(model, EXITS))
    traces = [record(model, heads, SPACE, Prompt("tiny", str(i), prompt)) for i, prompt in enumerate(PROMPTS)]
    rng, num_wrong = random.Random(0), 0
    for _ in range(12):
        candidate = random_candidate(SPACE, True, rng)
        contender = Contender(
            "one", candidate.policy, SPACE.width, {"tiny": heads.with_gate(candidate.gate)}, candidate
        )
        for trace in traces:
            assert replays_alike(model, contender, trace, SPACE), candidate
            generation = replay(trace, SPACE, ModelFacts.of(model, contender.heads), candidate).generation
            num_wrong += generation.num_drafted - generation.num_accepted
    assert num_wrong > 20, "the heads are never wrong: the test has no teeth"
    study = CostStudy(model, {"tiny": heads}, traces, SPACE, 0)
    study.measure_random()
    costs = study.costs()
    assert costs.seconds[: SPACE.max_drafts + 1].min() > 0
