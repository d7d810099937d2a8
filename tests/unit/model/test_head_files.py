"""Exit heads on disk: they come back as they were, and what is damaged or of another model is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adadecode.errors import ExitHeadsError
from adadecode.model.head_files import FACTS, TENSORS, load_heads, save_heads
from adadecode.model.head_tensors import HeadTensors
from tests.folders import tiny_facts
from tests.models import random_gates, random_transforms, shortlist_of, tiny_model
from tests.unit.model.test_exit_heads import propose, step_with_random_rows


def noise(model, exits, seed=0) -> HeadTensors:
    """Random heads without a shortlist and gates."""
    generator = torch.Generator().manual_seed(seed)
    return HeadTensors({e: (torch.randn(model.width, model.width, generator=generator),) for e in exits})


def reduced(model, exits) -> HeadTensors:
    """Heads near the identity with a shortlist of ten tokens and gates."""
    transforms = random_transforms(model, exits)
    shortlist = shortlist_of(model, transforms, range(40, 50))
    return HeadTensors({e: (t,) for e, t in transforms.items()}, shortlist, random_gates(model, exits))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_heads(tmp_path / "heads", noise(model, (1, 3)), tiny_facts(model, (1, 3)))
    return tmp_path / "heads"


@pytest.fixture
def reduced_folder(model, tmp_path) -> Path:
    save_heads(tmp_path / "reduced", reduced(model, (1, 3)), tiny_facts(model, (1, 3)))
    return tmp_path / "reduced"


def refusal(folder: Path, model, **settings) -> str:
    with pytest.raises(ExitHeadsError) as caught:
        load_heads(folder, model, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_heads_come_back_bit_for_bit(dtype, tmp_path):
    model = tiny_model(dtype=getattr(torch, dtype))
    tensors = noise(model, (1, 2, 3))
    save_heads(tmp_path, tensors, tiny_facts(model, (1, 2, 3), dtype=dtype))
    loaded, made = load_heads(tmp_path, model), tensors.on(model)
    assert loaded.exits == (1, 2, 3)
    hidden = torch.randn(8, model.width, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    for exit_layer in loaded.exits:
        assert torch.equal(loaded.logits(exit_layer, hidden), made.logits(exit_layer, hidden))


@pytest.mark.parametrize("head", ["full", "shortlist"])
@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_heads_with_a_shortlist_and_gates_propose_what_they_did(dtype, gate, head, tmp_path):
    model = tiny_model(dtype=getattr(torch, dtype))
    tensors = reduced(model, (1, 2, 3))
    save_heads(tmp_path, tensors, tiny_facts(model, (1, 2, 3), dtype=dtype))
    loaded = load_heads(tmp_path, model, head, gate)
    made = tensors.on(model, head, gate)
    step = step_with_random_rows(model)
    proposals = [
        [propose(heads, e, step, slot, slot + 1) for e in (1, 2, 3) for slot in range(8)] for heads in (loaded, made)
    ]
    assert proposals[0] == proposals[1]
    assert (None in proposals[0]) == (gate > 0.0), "the gates let some pass and hold some up"


def test_the_content_hash_tells_one_set_of_heads_from_another(model, folder, tmp_path):
    first = load_heads(folder, model).content_hash
    save_heads(tmp_path / "same", noise(model, (1, 3)), tiny_facts(model, (1, 3)))
    save_heads(tmp_path / "other", noise(model, (1, 3), seed=1), tiny_facts(model, (1, 3)))
    assert load_heads(tmp_path / "same", model).content_hash == first
    assert load_heads(tmp_path / "other", model).content_hash != first


def test_heads_of_another_model_are_refused(folder):
    message = refusal(folder, tiny_model(seed=1))
    assert "made for 'tiny'" in message
    assert "train-heads" in message


def test_heads_whose_facts_name_no_kind_are_the_papers(model, folder):
    facts = json.loads((folder / FACTS).read_text())
    assert facts.pop("kind") == "transform"
    (folder / FACTS).write_text(json.dumps(facts))
    assert load_heads(folder, model).exits == (1, 3)


def test_tensors_of_another_kind_than_the_facts_name_are_refused(model, folder):
    facts = json.loads((folder / FACTS).read_text()) | {"kind": "full"}
    (folder / FACTS).write_text(json.dumps(facts))
    assert "do not match exits [1, 3] of kind full" in refusal(folder, model)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("low-rank", (torch.zeros(32, 4), torch.zeros(5, 32))),
        ("low-rank", (torch.zeros(16, 4), torch.zeros(4, 16))),
        ("full", (torch.zeros(97, 16),)),
        ("full", (torch.zeros(98, 32),)),
    ],
)
def test_heads_of_another_kind_that_do_not_fit_the_model_are_refused(kind, parts, model, tmp_path):
    save_heads(tmp_path, HeadTensors({1: parts}, kind=kind), tiny_facts(model, (1,), kind=kind))
    assert "train" in refusal(tmp_path, model)


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
    save_heads(tmp_path, HeadTensors({1: (torch.eye(16),)}), tiny_facts(model, (1,), width=16))
    assert "exit head 1 has shape [16, 16], the model needs [32, 32]" in refusal(tmp_path, model)


def test_tensors_that_do_not_match_the_named_exits_are_refused(model, folder):
    save_file({"T.1": torch.eye(model.width), "T.2": torch.eye(model.width)}, folder / TENSORS)
    assert '["T.1", "T.2"] do not match exits [1, 3]' in refusal(folder, model)


def test_a_shortlist_or_gates_that_the_folder_lacks_are_refused(model, folder):
    message = refusal(folder, model, head="shortlist")
    assert message.startswith("--head shortlist: ")
    assert "were made without; use --head full, or train heads" in message
    message = refusal(folder, model, gate=0.25)
    assert message.startswith("--gate 0.25: ")
    assert "were made without; use --gate 0, or train heads" in message


@pytest.mark.parametrize("missing", ["T.3", "shortlist.ids", "shortlist.1", "gate.3"])
def test_a_set_of_tensors_with_a_gap_is_refused(missing, model, reduced_folder):
    tensors = load_file(reduced_folder / TENSORS)
    del tensors[missing]
    save_file(tensors, reduced_folder / TENSORS)
    assert "do not match exits [1, 3]" in refusal(reduced_folder, model)


def test_reduced_heads_without_gates_can_be_loaded(model, reduced_folder):
    tensors = load_file(reduced_folder / TENSORS)
    save_file({name: t for name, t in tensors.items() if not name.startswith("gate")}, reduced_folder / TENSORS)
    assert load_heads(reduced_folder, model, "shortlist").exits == (1, 3)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("shortlist.1", torch.zeros(10, 16)),
        ("shortlist.3", torch.zeros(9, 32)),
        ("shortlist.ids", torch.arange(90, 100)),
        ("shortlist.ids", torch.arange(-1, 9)),
        ("gate.1", torch.zeros(32)),
        ("gate.3", torch.zeros(34)),
    ],
    ids=["narrow shortlist", "short shortlist", "id past the vocabulary", "negative id", "narrow gate", "wide gate"],
)
def test_a_shortlist_or_gate_that_does_not_fit_the_model_is_refused(name, tensor, model, reduced_folder):
    """Native kernels take sizes on trust: a head of another width would write past its buffers."""
    tensors = load_file(reduced_folder / TENSORS)
    save_file(tensors | {name: tensor.to(tensors[name].dtype)}, reduced_folder / TENSORS)
    refusal(reduced_folder, model, head="shortlist", gate=0.5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format_version": 2}, "their format_version is 2, this program knows 1: update it"),
        ({"kind": "none"}, "damaged"),
        ({"exits": "1,3"}, "damaged"),
        ({"exits": [1, 3, *range(4, 4000)]}, "do not match exits [1, 3, 4, "),
        ({"base_model_hash": "\x1b[2J\n" + "0" * 999}, "with weights \\x1b[2J 000"),
    ],
    ids=str,
)
def test_odd_facts_are_one_short_line(changed, words, model, folder):
    facts = json.loads((folder / FACTS).read_text()) | changed
    (folder / FACTS).write_text(json.dumps(facts))
    line = refusal(folder, model)
    assert words in line
    assert line.isprintable()
    assert len(line) < 500


@pytest.mark.parametrize("ids", [torch.arange(10.0), torch.arange(40, 50)[None], torch.zeros(0, dtype=torch.long)])
def test_a_shortlist_that_is_no_row_of_token_ids_is_refused(ids, model, reduced_folder):
    tensors = load_file(reduced_folder / TENSORS)
    save_file(tensors | {"shortlist.ids": ids.contiguous()}, reduced_folder / TENSORS)
    assert "does not fit a model" in refusal(reduced_folder, model, head="shortlist")


def test_a_folder_in_place_of_a_file_is_refused(model, folder):
    (folder / FACTS).unlink()
    (folder / FACTS).mkdir()
    assert f"no {FACTS} with {TENSORS}" in refusal(folder, model)


@pytest.mark.parametrize("exits", [[3, 1], [0, 1], [1, 4], [-1], []])
def test_exits_on_disk_that_do_not_fit_the_model_are_refused(model, folder, exits):
    """L = 4: exit layers increase and lie in 1..3."""
    facts = json.loads((folder / FACTS).read_text()) | {"exits": exits}
    (folder / FACTS).write_text(json.dumps(facts))
    save_file({f"T.{e}": torch.eye(model.width) for e in exits}, folder / TENSORS)
    assert f"exit layers {exits} must increase and lie in 1..3" in refusal(folder, model)


@pytest.mark.parametrize("head", ["full", "shortlist"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_temperature_divides_the_logits_of_its_exit_and_of_no_other(dtype, head, tmp_path):
    model = tiny_model(dtype=getattr(torch, dtype))
    tensors = reduced(model, (1, 3))
    save_heads(tmp_path, replace(tensors, temperatures={3: 2.5}), tiny_facts(model, (1, 3), dtype=dtype))
    loaded, plain = load_heads(tmp_path, model, head), tensors.on(model, head)
    hidden = step_with_random_rows(model).hidden
    assert torch.equal(loaded.logits(1, hidden), plain.logits(1, hidden))
    torch.testing.assert_close(
        2.5 * loaded.logits(3, hidden).float(), plain.logits(3, hidden).float(), rtol=0.05, atol=0.05
    )
    step = step_with_random_rows(model)
    assert propose(loaded, 1, step, 0, 8) == propose(plain, 1, step, 0, 8), (
        "heads without one propose as they did, bit for bit"
    )
    cooled, hot = propose(loaded, 3, step, 0, 8), propose(plain, 3, step, 0, 8)
    assert all(ours < theirs for (_, ours), (_, theirs) in zip(cooled, hot, strict=True))


@pytest.mark.parametrize("stored", [[0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 2.0]])
def test_a_temperature_that_is_no_number_above_0_is_refused(stored, folder, model):
    tensors = load_file(folder / TENSORS)
    save_file(tensors | {"temperature.3": torch.tensor(stored)}, folder / TENSORS)
    assert "do not match exits" in refusal(folder, model)
