"""Heads of every kind: where they start, that training improves them, and that they decode losslessly in the engine."""

import pyarrow.parquet as pq
import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy, make_policy
from adadecode.errors import ExitHeadsError, UsageError
from adadecode.model.head_files import TENSORS, load_heads
from adadecode.model.head_tensors import OVER_SHORTLIST, PART_NAMES
from adadecode.settings import DecodeSettings, TrainConfig
from adadecode.training.base_pass import measure
from adadecode.training.curves import CURVES
from adadecode.training.kinds import new_heads
from adadecode.training.outputs import make_outputs
from adadecode.training.stream import OutputStream
from adadecode.training.train import train_heads
from tests.models import tiny_model
from tests.unit.training.test_distill import CONFIG, PROMPTS, interrupt_training

EXITS = (1, 2, 3)
SETTINGS = CONFIG.model_dump(exclude={"kind", "rank", "epochs", "learning_rate", "loss", "part_prompts"})


def config_of(kind, **settings):
    taught = {} if kind == "original" else {"epochs": 3, "learning_rate": 5e-3}
    return TrainConfig(**(SETTINGS | taught | settings), kind=kind)


@pytest.fixture(scope="module", params=PART_NAMES)
def trained(request, tmp_path_factory):
    """Kind, folder and facts of one finished training."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, train_heads(tiny_model(), PROMPTS, config_of(request.param), out, lambda line: None)


def test_heads_of_every_kind_are_better_after_training_than_before(trained, tmp_path):
    kind, _, facts = trained
    assert facts.kind == kind
    if kind == "original":
        assert (facts.training["num_steps"], facts.training["final_losses"]) == (0, {})
        return
    start = config_of(kind, learning_rate=1e-9, epochs=1)
    before = train_heads(tiny_model(), PROMPTS, start, tmp_path, lambda line: None)
    before_kl = before.training["held_out_kl"]
    if kind == "block":
        assert before_kl.pop("3") == pytest.approx(0.0, abs=1e-5), (
            "at the last exit it starts as the model's own last layer"
        )
    for exit_layer in before_kl:
        assert facts.training["held_out_kl"][exit_layer] < before_kl[exit_layer]


@pytest.mark.parametrize("head", ["full", "shortlist"])
@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_heads_of_every_kind_keep_every_bit_of_vanilla_decoding(trained, head, gate):
    kind, out, _ = trained
    model = tiny_model()
    if kind in OVER_SHORTLIST and head == "full":
        with pytest.raises(ExitHeadsError, match=r"--head full: .* made without; use --head shortlist, or train"):
            load_heads(out, model, head, gate)
        return
    heads = load_heads(out, model, head, gate)
    policy = make_policy(DecodeSettings(gamma=0.1, head=head, gate=gate), heads.exits, model.num_layers)
    num_drafted = 0
    for prompt in PROMPTS[:4]:
        request = Request(prompt, 16, record_logits=True)
        vanilla = generate(model, request, Policy(rows=policy.width))
        early = generate(model, request, policy, drafters_of(policy, heads))
        assert torch.equal(early.logits, vanilla.logits)
        num_drafted += early.generation.num_drafted
    assert num_drafted > 0


def test_loaded_heads_do_what_the_trained_ones_did(trained):
    """The last held-out points of the curves come from what was trained, the report here from what was saved."""
    kind, out, _ = trained
    model, config = tiny_model(), config_of(kind)
    parts = make_outputs(model, PROMPTS, config, out, lambda line: None)
    stream = OutputStream(out, parts, held_out=config.held_out, seed=config.seed, batch_tokens=config.batch_tokens)
    heads = load_heads(out, model, "shortlist" if kind in OVER_SHORTLIST else "full")
    report = measure(model, heads, stream.held_out_batches())
    last = pq.read_table(out / CURVES).to_pylist()[-len(EXITS) :]
    assert {point["split"] for point in last} == {"held_out"}
    for point in last:
        assert report["agreement"][str(point["exit"])] == pytest.approx(point["agreement"], abs=1e-6)
        if kind not in OVER_SHORTLIST:  # whose loss is another KL
            assert report["held_out_kl"][str(point["exit"])] == pytest.approx(point["kl"], rel=1e-3)


@pytest.mark.parametrize("changed", [{}, {"kl_top_k": 9}], ids=["whole", "top-k"])
def test_an_interrupted_training_of_every_kind_ends_in_the_same_bits(trained, changed, tmp_path):
    kind, out, _ = trained
    if kind == "original" or (changed and kind in OVER_SHORTLIST):
        pytest.skip("nothing is trained, or not on this loss")
    config, whole = config_of(kind, **changed), out
    if changed:
        whole = tmp_path / "whole"
        train_heads(tiny_model(), PROMPTS, config, whole, lambda line: None)
    resumed = tmp_path / "resumed"
    interrupt_training(tiny_model(), resumed, config)
    train_heads(tiny_model(), PROMPTS, config, resumed, lambda line: None)
    assert (resumed / TENSORS).read_bytes() == (whole / TENSORS).read_bytes()


def test_the_learning_rate_rises_and_then_falls_to_nothing(trained):
    kind, out, _ = trained
    points = [p for p in pq.read_table(out / CURVES).to_pylist() if p["split"] == "train" and p["exit"] == EXITS[0]]
    if kind == "original":
        assert points == []
        return
    rates = [point["learning_rate"] for point in points]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.3 * max(rates) <= 0.3 * 5e-3


def test_heads_whose_file_was_cut_off_are_trained_again(tmp_path):
    config = config_of("original")
    train_heads(tiny_model(), PROMPTS, config, tmp_path, lambda line: None)
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[: len(whole) // 2])
    train_heads(tiny_model(), PROMPTS, config, tmp_path, lambda line: None)
    assert (tmp_path / TENSORS).read_bytes() == whole


@pytest.mark.parametrize(("settings", "expected"), [({"rank": 33}, "--rank 33: the model's width is 32; give 1..32")])
def test_a_rank_beyond_the_width_is_refused(tmp_path, settings, expected):
    with pytest.raises(UsageError, match=expected):
        train_heads(tiny_model(), PROMPTS, config_of("low-rank", **settings), tmp_path, lambda line: None)


@pytest.mark.parametrize("kind", ["transform", "low-rank", "full", "original"])
def test_untrained_heads_are_the_models_own_norm_and_lm_head(kind):
    model = tiny_model()
    hidden = torch.randn(5, model.width, generator=torch.Generator().manual_seed(0))
    for head in new_heads(model, EXITS, config_of(kind), torch.arange(9)):
        torch.testing.assert_close(head.logits(model.final_norm(hidden)), model.lm_head(hidden))
        torch.testing.assert_close(head.rows(torch.arange(9)), model.lm.lm_head.weight[:9])


def test_low_rank_heads_have_the_rank_asked_for_and_are_small(tmp_path):
    facts = train_heads(tiny_model(), PROMPTS, config_of("low-rank", rank=3), tmp_path, lambda line: None)
    assert facts.training["settings"]["rank"] == 3
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "exit_heads.safetensors")
    assert (list(tensors["U.1"].shape), list(tensors["V.1"].shape)) == ([32, 3], [3, 32])
    assert "T.1" not in tensors


@pytest.mark.parametrize(("setting", "flag"), [({"shortlist_len": 98}, "--shortlist-len"), ({"kl_top_k": 98}, "--kl-")])
def test_more_tokens_than_the_vocabulary_has_are_refused(setting, flag, tmp_path):
    with pytest.raises(UsageError, match=rf"{flag}.* 98: the vocabulary has 97 tokens; give 1\.\.97"):
        train_heads(tiny_model(), PROMPTS, config_of("transform", **setting), tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out").exists()


def test_training_with_the_kl_of_the_top_tokens_improves_the_whole_kl(tmp_path):
    config = config_of("transform", kl_top_k=10)
    facts = train_heads(tiny_model(), PROMPTS, config, tmp_path / "a", lambda line: None)
    start = config.model_copy(update={"learning_rate": 1e-9, "epochs": 1})
    before = train_heads(tiny_model(), PROMPTS, start, tmp_path / "b", lambda line: None)
    assert facts.training["held_out_kl"]["1"] < before.training["held_out_kl"]["1"]


@pytest.mark.parametrize("loss", ["argmax", "acceptance"])
def test_every_loss_teaches_heads_to_agree_more_often(loss, tmp_path):
    config = config_of("block", loss=loss, epochs=6)
    train_heads(tiny_model(), PROMPTS, config, tmp_path, lambda line: None)
    points = [p for p in pq.read_table(tmp_path / CURVES).to_pylist() if p["split"] == "train" and p["exit"] == 1]
    assert points[-1]["agreement"] > points[0]["agreement"] + 0.02


def test_a_training_ends_when_agreement_no_longer_rises_and_says_how_much_it_read(tmp_path):
    config, lines = config_of("transform", learning_rate=1e-9, epochs=8), []
    facts = train_heads(tiny_model(), PROMPTS, config, tmp_path, lines.append)
    assert [line for line in lines if "no longer rises" in line] == [
        "training ends after 4 of 8 epochs: agreement no longer rises at any exit"
    ]
    once = train_heads(tiny_model(), PROMPTS, config_of("transform", epochs=1), tmp_path / "once", lambda line: None)
    assert facts.training["num_trained_tokens"] == once.training["num_trained_tokens"] > 0
    assert facts.training["num_steps"] == 4 * once.training["num_steps"]
