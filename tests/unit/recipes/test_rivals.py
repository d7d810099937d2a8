"""What the demo's rivals draft with is made by one recipe: heads for each domain, and a smaller model that learns."""

import json
import random

import pytest

from adadecode.model.load import load_model
from adadecode.model.medusa_heads import load_medusa_heads
from adadecode.recipes import rivals
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model

RNG = random.Random(0)


def test_drafters_are_built_once_and_the_smaller_model_learns_what_the_model_says(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "DRAFT_LAYERS", (0, 3))
    monkeypatch.setattr(rivals, "BLOCK_SETTINGS", rivals.BLOCK_SETTINGS | {"epochs": 1, "max_new_tokens": 16})
    prompts = {name: [[RNG.randrange(97) for _ in range(5)] for _ in range(20)] for name in ("math", "code")}
    model, tokenizer = load_model(ModelSettings(model=str(save_tiny_model(tmp_path / "model"))))
    lines: list[str] = []
    rivals.build(model, tokenizer, prompts, tmp_path / "work", 0, lines.append)
    for domain in prompts:
        assert load_medusa_heads(tmp_path / "work" / "medusa" / domain, model).num_heads == rivals.AHEAD
    said = [line for line in lines if line.startswith("draft model, epoch")]
    shares = [float(line.split("agrees on ")[1].split("%")[0]) for line in said]
    assert len(shares) == rivals.DRAFT_EPOCHS
    facts = json.loads((tmp_path / "work" / "draft-model" / rivals.DRAFT_FACTS).read_text())
    assert facts["agreement"] == pytest.approx(shares[-1] / 100, abs=1e-3)
    draft, of_draft = load_model(ModelSettings(model=str(tmp_path / "work" / "draft-model")))
    assert (draft.num_layers, draft.vocab_size) == (2, model.vocab_size)
    assert of_draft.get_vocab() == tokenizer.get_vocab()
    before = len(lines)
    rivals.build(model, tokenizer, prompts, tmp_path / "work", 0, lines.append)
    assert not [line for line in lines[before:] if "epoch" in line or "training: step" in line], "nothing is done again"


def test_a_smaller_model_begins_as_some_layers_of_the_model(tmp_path):
    model, _ = load_model(ModelSettings(model=str(save_tiny_model(tmp_path / "model")), dtype="float32"))
    smaller = rivals.of_layers(model.lm, (0, 3))
    for to, layer in enumerate((0, 3)):
        expected = model.lm.model.layers[layer].state_dict()
        assert all(tensor.equal(expected[name]) for name, tensor in smaller.model.layers[to].state_dict().items())
    assert all(parameter.requires_grad for parameter in smaller.parameters())
