"""Exit heads on disk: the same bits back, and a one-line refusal of anything that does not fit the model."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adadecode.errors import ExitHeadsError
from adadecode.model.exit_heads import FACTS, TENSORS, ExitHeads, check_exits, load_heads, paper_exits, save_heads
from tests.folders import tiny_facts
from tests.models import random_heads, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def noise(model, exits, seed=0) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {e: torch.randn(model.width, model.width, generator=generator) for e in exits}


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_heads(tmp_path / "heads", noise(model, (1, 3)), tiny_facts(model, (1, 3)))
    return tmp_path / "heads"


def refusal(folder: Path, model) -> str:
    with pytest.raises(ExitHeadsError) as caught:
        load_heads(folder, model)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_heads_come_back_bit_for_bit(dtype, tmp_path):
    model = tiny_model(dtype=getattr(torch, dtype))
    transforms = noise(model, (1, 2, 3))
    save_heads(tmp_path, transforms, tiny_facts(model, (1, 2, 3), dtype=dtype))
    loaded, made = load_heads(tmp_path, model), ExitHeads(model, transforms)
    assert loaded.exits == (1, 2, 3)
    hidden = torch.randn(8, model.width, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    for exit_layer in loaded.exits:
        assert torch.equal(loaded.logits(exit_layer, hidden), made.logits(exit_layer, hidden))


def test_the_content_hash_tells_one_set_of_heads_from_another(model, folder, tmp_path):
    first = load_heads(folder, model).content_hash
    save_heads(tmp_path / "same", noise(model, (1, 3)), tiny_facts(model, (1, 3)))
    save_heads(tmp_path / "other", noise(model, (1, 3), seed=1), tiny_facts(model, (1, 3)))
    assert load_heads(tmp_path / "same", model).content_hash == first
    assert load_heads(tmp_path / "other", model).content_hash != first


def test_a_proposal_is_the_argmax_with_its_softmax_probability_in_every_row(model):
    heads = random_heads(model, (2,))
    hidden = torch.randn(8, model.width, generator=torch.Generator().manual_seed(1))
    probabilities = heads.logits(2, hidden).softmax(dim=-1)
    for row in range(8):
        token_id, confidence = heads.propose(2, hidden, row, position=0)
        assert token_id == probabilities[row].argmax()
        assert confidence == pytest.approx(probabilities[row].max().item(), rel=1e-5)


def test_heads_of_another_model_are_refused(folder):
    message = refusal(folder, tiny_model(seed=1))
    assert "made for 'tiny'" in message
    assert "train-heads" in message


@pytest.mark.parametrize("missing", [FACTS, TENSORS])
def test_a_missing_file_is_refused(model, folder, missing):
    (folder / missing).unlink()
    assert f"no {FACTS} with {TENSORS}" in refusal(folder, model)


def test_a_missing_folder_is_refused(model, tmp_path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none", model)


@pytest.mark.parametrize("kept_len", [0, 4, 100, -1])
def test_truncated_tensors_are_refused(model, folder, kept_len):
    raw = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(raw[:kept_len])
    assert "damaged" in refusal(folder, model)


@pytest.mark.parametrize("content", ["", "[]", '{"exits": [1, 3]', '{"exits": [1, 3]}'])
def test_damaged_facts_are_refused(model, folder, content):
    (folder / FACTS).write_text(content)
    assert "damaged" in refusal(folder, model)


def test_heads_of_another_width_are_refused(model, tmp_path):
    save_heads(tmp_path, {1: torch.eye(16)}, tiny_facts(model, (1,), width=16))
    assert "exit head 1 has shape [16, 16], the model needs [32, 32]" in refusal(tmp_path, model)


def test_tensors_that_do_not_match_the_named_exits_are_refused(model, folder):
    save_file({"T.1": torch.eye(model.width), "T.2": torch.eye(model.width)}, folder / TENSORS)
    assert "['T.1', 'T.2'] do not match exits [1, 3]" in refusal(folder, model)


@pytest.mark.parametrize("exits", [[3, 1], [0, 1], [1, 4], [-1], []])
def test_exits_on_disk_that_do_not_fit_the_model_are_refused(model, folder, exits):
    """L = 4: exit layers increase and lie in 1..3."""
    facts = json.loads((folder / FACTS).read_text()) | {"exits": exits}
    (folder / FACTS).write_text(json.dumps(facts))
    save_file({f"T.{e}": torch.eye(model.width) for e in exits}, folder / TENSORS)
    assert f"exit layers {exits} must increase and lie in 1..3" in refusal(folder, model)


@pytest.mark.parametrize("exits", [(), (0,), (4,), (1, 4), (2, 1), (2, 2)])
def test_check_exits_refuses_what_does_not_increase_within_the_model(exits):
    with pytest.raises(ExitHeadsError, match=r"1\.\.3 for a model of 4 layers"):
        check_exits(exits, 4)


@given(num_layers=st.integers(2, 40))
def test_the_papers_exits_fit_every_model(num_layers):
    exits = paper_exits(num_layers)
    check_exits(exits, num_layers)
    assert len(exits) == min(3, num_layers - 1)
    assert num_layers // 2 in exits
    for exit_layer, quarter in zip(exits, (1, 2, 3), strict=False):
        if num_layers >= 4:
            assert exit_layer == num_layers * quarter // 4
