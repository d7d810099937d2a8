"""Temperatures: with them a confidence is how often the head agrees with the last layer."""

from dataclasses import replace

import pytest
import torch

from adadecode.engine.generate import Request, generate
from adadecode.model.head_tensors import HeadTensors
from adadecode.training.calibrate import LEAST_POSITIONS, fit_temperature, fit_temperatures
from adadecode.training.outputs import GreedyOutput
from tests.models import random_transforms, shortlist_of, tiny_model


def drawn(temperature: float, num: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[N, 20]`, and whether a token drawn from their softmax at `temperature` is the most likely one."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(num, 20, generator=generator)
    token_ids = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
    return logits, (token_ids == logits.argmax(dim=-1)).float()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_is_that_by_which_tokens_were_drawn(temperature):
    logits, agrees = drawn(temperature)
    found = fit_temperature(logits, agrees)
    assert found == pytest.approx(temperature, rel=0.1)
    confidence = (logits / found).softmax(dim=-1).max(dim=-1).values
    assert confidence.mean().item() == pytest.approx(agrees.mean().item(), abs=0.02)


def test_a_head_that_is_sure_of_everything_and_right_stays_within_the_bounds():
    logits = torch.eye(5) * 50.0
    assert 0.19 < fit_temperature(logits, torch.ones(5)) < 10.1
    assert 0.19 < fit_temperature(logits, torch.zeros(5)) < 10.1


def outputs_of(model, num_prompts: int) -> list[list[GreedyOutput]]:
    prompts = [[3 + i, 5 + i, 7 + 2 * i] for i in range(num_prompts)]
    return [[GreedyOutput(p, list(generate(model, Request(p, 24)).generation.output_token_ids))] for p in prompts]


def test_confidences_come_closer_to_the_share_that_agrees():
    """Heads of a wild scale: far too sure before, about right after."""
    model = tiny_model()
    exits = (1, 3)
    transforms = {e: 6.0 * t for e, t in random_transforms(model, exits).items()}
    tensors = HeadTensors({e: (t,) for e, t in transforms.items()}, shortlist_of(model, transforms, range(90)))
    batches = outputs_of(model, 16)
    temperatures = fit_temperatures(model, tensors, batches)
    assert set(temperatures) == set(exits)
    assert all(t > 1.5 for t in temperatures.values())
    cooled = replace(tensors, temperatures=temperatures)
    for exit_layer in exits:
        off = [miscalibration(model, heads, exit_layer, batches) for heads in (tensors, cooled)]
        assert off[1] < 0.6 * off[0], exit_layer


def miscalibration(model, tensors: HeadTensors, exit_layer: int, batches) -> float:
    """How far the mean confidence lies from the share of positions that agree."""
    heads = tensors.on(model, "shortlist")
    test = dict(zip(heads.exits, heads.tests, strict=True))[exit_layer]
    confidences, agreed = [], []
    for [(prompt_ids, output_ids)] in batches:
        fed = torch.tensor([prompt_ids + output_ids[:-1]])
        hidden = model.lm.model(fed, output_hidden_states=True).hidden_states[exit_layer][0, len(prompt_ids) - 1 :]
        logits = model.final_norm(hidden) @ test.head.matrices[0].T
        best = logits.softmax(dim=-1).max(dim=-1)
        confidences.append(best.values)
        agreed.append(test.head.token_ids[best.indices] == torch.tensor(output_ids))
    return abs(torch.cat(confidences).mean().item() - torch.cat(agreed).float().mean().item())


def test_few_positions_give_no_temperature():
    model = tiny_model()
    transforms = random_transforms(model, (2,))
    tensors = HeadTensors({2: (transforms[2],)}, shortlist_of(model, transforms, range(90)))
    few = outputs_of(model, 2)
    assert sum(len(output.output_ids) for [output] in few) < LEAST_POSITIONS
    assert fit_temperatures(model, tensors, few) == {}
