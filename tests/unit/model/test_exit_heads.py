"""Exit heads: what they propose, the same bits back from disk, and a one-line refusal of what does not fit the model."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adadecode.engine.policy import paper_exits
from adadecode.errors import ExitHeadsError
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import Gate
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads, HeadTensors, check_exits, original_heads
from adadecode.model.head_files import FACTS, TENSORS, load_heads, save_heads
from tests.folders import tiny_facts
from tests.models import KERNELS_AND_DTYPES, random_gates, random_heads, random_transforms, shortlist_of, tiny_model

CLOSE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.06}


def propose(heads: ExitHeads, exit_layer: int, step: DecodeStep, lo: int, hi: int) -> Proposals | None:
    """What `heads` propose for slots [lo, hi), which stand at `exit_layer` already."""
    return heads.propose(step, Segment(lo, hi, exit_layer, exit_layer), lo, 0)


def gate_at(heads: ExitHeads, exit_layer: int) -> Gate:
    return dict(zip(heads.exits, heads.tests, strict=True))[exit_layer].gate


@pytest.fixture(scope="module")
def model():
    return tiny_model()


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


def step_with_random_rows(model: DecoderModel, width: int = 8) -> DecodeStep:
    step = model.new_step(width, 20)
    step.hidden.copy_(torch.randn(width, model.width, generator=torch.Generator().manual_seed(1)))
    return step


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


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_proposal_is_the_argmax_with_its_softmax_probability_in_every_slot_asked_about(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    heads = random_heads(model, (2,))
    step = step_with_random_rows(model)
    probabilities = heads.logits(2, step.hidden).float().softmax(dim=-1)
    for lo, hi in ((0, 8), (3, 6), (7, 8)):
        proposals = propose(heads, 2, step, lo, hi)
        for row, (token_id, confidence) in zip(probabilities[lo:hi], proposals, strict=True):
            assert row[token_id] == pytest.approx(row.max().item(), rel=CLOSE[dtype])
            assert confidence == pytest.approx(row.max().item(), rel=CLOSE[dtype])


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_shortlist_proposes_the_full_heads_best_token_in_the_shortlist(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    transforms, token_ids = random_transforms(model, (1, 3)), [90, 3, 41, 42, 77, 5, 0]
    shortlist = shortlist_of(model, transforms, token_ids)
    heads = HeadTensors({e: (t,) for e, t in transforms.items()}, shortlist).on(model, "shortlist")
    step = step_with_random_rows(model)
    for exit_layer in (1, 3):
        over_shortlist = heads.logits(exit_layer, step.hidden).float()[:, token_ids].softmax(dim=-1)
        proposals = propose(heads, exit_layer, step, 0, 8)
        for row, (token_id, confidence) in zip(over_shortlist, proposals, strict=True):
            assert row[token_ids.index(token_id)] == pytest.approx(row.max().item(), rel=CLOSE[dtype])
            assert confidence == pytest.approx(row.max().item(), rel=CLOSE[dtype])


def test_a_shortlist_of_the_whole_vocabulary_proposes_what_the_full_head_does(model):
    transforms = random_transforms(model, (2,))
    tensors = HeadTensors({2: (transforms[2],)}, shortlist_of(model, transforms, range(97)))
    full, listed = tensors.on(model), tensors.on(model, "shortlist")
    step = step_with_random_rows(model)
    for ours, theirs in zip(propose(listed, 2, step, 0, 8), propose(full, 2, step, 0, 8), strict=True):
        assert ours == (theirs[0], pytest.approx(theirs[1], rel=1e-4))


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@torch.inference_mode()
def test_a_gate_is_a_logistic_regression_on_the_normed_hidden_state(scale, kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    gates = {e: gate * scale for e, gate in random_gates(model, (1, 2)).items()}
    heads = random_heads(model, (1, 2), gates=gates, gate=0.5)
    step = step_with_random_rows(model)
    for exit_layer in (1, 2):
        logits = model.final_norm(step.hidden).float() @ gates[exit_layer][:-1] + gates[exit_layer][-1]
        for slot, expected in enumerate(logits.sigmoid().tolist()):
            probability = step.probe(gate_at(heads, exit_layer), slot)
            assert probability == pytest.approx(expected, rel=CLOSE[dtype], abs=CLOSE[dtype])


@torch.inference_mode()
def test_a_gate_skips_the_test_of_a_slot_that_is_not_worth_it(model):
    gates = random_gates(model, (2,))
    step = step_with_random_rows(model)
    free = random_heads(model, (2,), gates=gates)
    gate = gate_at(random_heads(model, (2,), gates=gates, gate=0.5), 2)
    probabilities = [step.probe(gate, slot) for slot in range(8)]
    bar = sorted(probabilities)[3] + 1e-6
    gated = random_heads(model, (2,), gates=gates, gate=bar)
    for slot, probability in enumerate(probabilities):
        expected = propose(free, 2, step, slot, slot + 1) if probability > bar else None
        assert propose(gated, 2, step, slot, slot + 1) == expected
    assert propose(gated, 2, step, 0, 8) == propose(free, 2, step, 0, 8), "the others are tested anyway"
    assert sum(probability > bar for probability in probabilities) == 4


def test_a_gate_of_1_skips_every_test_and_a_gate_of_0_none(model):
    gates = random_gates(model, (1, 2, 3))
    step = step_with_random_rows(model)
    closed, opened = (random_heads(model, (1, 2, 3), gates=gates, gate=gate) for gate in (1.0, 0.0))
    for exit_layer in (1, 2, 3):
        for slot in range(8):
            assert propose(closed, exit_layer, step, slot, slot + 1) is None
            assert propose(opened, exit_layer, step, slot, slot + 1) is not None


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
    assert "['T.1', 'T.2'] do not match exits [1, 3]" in refusal(folder, model)


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


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_original_heads_propose_what_the_models_own_head_says(kernels, dtype):
    model = tiny_model(dtype=dtype, kernels=kernels)
    heads = original_heads(model, (1, 3))
    assert (heads.exits, heads.content_hash) == ((1, 3), "original")
    step = model.new_step(8, 16)
    with torch.inference_mode():
        step.begin(0)
        step.put(0, [5, 6, 7])
        step.run(0, 3, 0, 1)
        proposed = propose(heads, 1, step, 0, 3)
        assert [token_id for token_id, _ in proposed] == step.verify(0, 3)[0], "the identity changes no bit"
        assert torch.equal(heads.logits(1, step.hidden), model.lm.lm_head(model.final_norm(step.hidden)))
