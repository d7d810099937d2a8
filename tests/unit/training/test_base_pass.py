"""Outputs through the base: the hidden states the engine sees, and the table of what heads would draft."""

import pytest
import torch

from adadecode.kernels.step import Segment
from adadecode.model.head_tensors import HeadTensors
from adadecode.training.base_pass import GAMMAS, measure, run_base
from adadecode.training.outputs import GreedyOutput
from adadecode.training.stream import pack
from tests.models import random_heads, tiny_model

OUTPUTS = [GreedyOutput([3, 1, 4], [1, 5]), GreedyOutput([9, 2, 6, 5, 3], [5, 8, 9, 7]), GreedyOutput([9], [3])]


def hidden_alone(model, token_ids, num_layers):
    """Hidden states `[T, d]` after `num_layers` layers of one unpadded sequence, computed layer by layer."""
    hidden = model.embed(torch.tensor([token_ids]))
    rotary = model.lm.model.rotary_emb(hidden, position_ids=torch.arange(len(token_ids))[None])
    for layer in model.lm.model.layers[:num_layers]:
        hidden = layer(hidden, position_embeddings=rotary)
    return hidden[0]


def test_packed_batches_hold_every_output_once_within_the_token_limit():
    outputs = [GreedyOutput([1] * (1 + i % 5), [2] * (1 + i % 7)) for i in range(40)]
    batches = pack(outputs, 24)
    assert sorted(output for batch in batches for output in batch) == sorted(outputs)
    for batch in batches:
        longest = max(len(o.prompt_ids) + len(o.output_ids) - 1 for o in batch)
        assert longest * len(batch) <= 24


def test_an_output_longer_than_the_batch_is_a_batch_of_its_own():
    assert [len(batch) for batch in pack(OUTPUTS, 1)] == [1, 1, 1]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_hidden_states_are_those_after_e_layers_at_the_positions_that_predict_outputs(family):
    model = tiny_model(family)
    base = run_base(model, OUTPUTS, (1, 3))
    for exit_idx, num_layers in enumerate((1, 3)):
        expected = [hidden_alone(model, p + o[:-1], num_layers)[len(p) - 1 :] for p, o in OUTPUTS]
        torch.testing.assert_close(base.hidden[exit_idx][base.predicts], torch.cat(expected))
    final = [model.lm_head(hidden_alone(model, p + o[:-1], 4)[len(p) - 1 :]) for p, o in OUTPUTS]
    torch.testing.assert_close(base.final_logits, torch.cat(final))


def test_the_report_counts_what_the_heads_themselves_propose():
    model = tiny_model()
    heads = random_heads(model, (1, 2, 3))
    report = measure(model, heads, pack(OUTPUTS, 8))
    base = run_base(model, OUTPUTS, heads.exits)
    final_ids = base.final_logits.argmax(-1).tolist()
    step = model.new_step(len(final_ids), 20)
    proposals = []
    for exit_layer, test, hidden in zip(heads.exits, heads.tests, base.hidden, strict=True):
        step.hidden.copy_(hidden[base.predicts])
        segment = Segment(0, len(final_ids), exit_layer, exit_layer)
        proposals.append(step.run_to_exit(segment, test, 0))
    hits = [[token == final for (token, _), final in zip(p, final_ids, strict=True)] for p in proposals]
    assert report["num_held_out_tokens"] == len(final_ids) == 7
    assert report["agreement"] == {str(e): sum(hit) / 7 for e, hit in zip(heads.exits, hits, strict=True)}
    depths = [next((e for e, hit in zip(heads.exits, row, strict=True) if hit), 4) for row in zip(*hits, strict=True)]
    assert report["oracle_layers_per_token"] == pytest.approx(sum(depths) / 7)
    rows = {(row["exit"], row["gamma"]): row for row in report["gamma_table"]}
    assert set(rows) == {(e, gamma) for e in heads.exits for gamma in GAMMAS}
    for (exit_layer, gamma), row in rows.items():
        i = heads.exits.index(exit_layer)
        drafted = [hit for (_, confidence), hit in zip(proposals[i], hits[i], strict=True) if confidence > gamma]
        assert row["draft_rate"] == len(drafted) / 7
        assert row["precision"] == (sum(drafted) / len(drafted) if drafted else None)


def test_precision_is_none_when_nothing_is_drafted():
    model = tiny_model()
    unsure = HeadTensors({2: (torch.zeros(model.width, model.width),)}).on(model)
    report = measure(model, unsure, [OUTPUTS])
    assert {(row["draft_rate"], row["precision"]) for row in report["gamma_table"]} == {(0.0, None)}


def test_top1_probability_is_the_final_layers():
    model = tiny_model()
    report = measure(model, random_heads(model, (2,)), [OUTPUTS])
    expected = run_base(model, OUTPUTS, (2,)).final_logits.softmax(-1).max(-1).values.mean()
    assert report["mean_top1_probability"] == pytest.approx(float(expected))
