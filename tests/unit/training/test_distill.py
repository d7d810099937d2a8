"""Training exit heads: they get better, the base stays as it is, and an interrupted run ends in the same bits."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adadecode.config import DecodeSettings, TrainConfig
from adadecode.engine.generate import generate
from adadecode.engine.policy import make_policy, step_width
from adadecode.errors import ExitHeadsError, NonFiniteLogitsError, RunFolderError
from adadecode.model.exit_heads import FACTS, TENSORS, ExitHeads, HeadFacts, load_heads
from adadecode.training.distill import CHECKPOINT, kl_sums, split_held_out, train_heads
from adadecode.training.outputs import OUTPUTS, GreedyOutput, greedy_outputs
from adadecode.training.replay import BasePass, measure
from tests.models import tiny_model

ROOT = Path(__file__).parents[3]
RNG = random.Random(0)
PROMPTS = [[RNG.randrange(97) for _ in range(RNG.randrange(2, 10))] for _ in range(40)]
CONFIG = TrainConfig(
    model="tiny",
    task="jsonl",
    max_new_tokens=16,
    epochs=4,
    batch_tokens=128,
    held_out=0.2,
    learning_rate=5e-3,
    dtype="float32",
)


def train(model, out, config=CONFIG, **settings):
    """Facts and the lines said."""
    lines: list[str] = []
    return train_heads(model, PROMPTS, config, out, lines.append, **settings), lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder and facts of one finished training of `tiny_model()`."""
    out = tmp_path_factory.mktemp("heads")
    facts, _ = train(tiny_model(), out)
    return out, facts


def test_training_beats_identity_heads_on_held_out_prompts(trained):
    _, facts = trained
    model = tiny_model()
    outputs = greedy_outputs(model, PROMPTS, CONFIG, trained[0], lambda line: None)
    _, held_out = split_held_out(outputs, CONFIG.held_out, CONFIG.seed)
    identity = ExitHeads(model, {e: torch.eye(model.width) for e in facts.exits})
    before = measure(model, identity, held_out, 128)
    after = facts.training
    assert facts.exits == (1, 2, 3)
    for exit_layer in map(str, facts.exits):
        assert after["held_out_kl"][exit_layer] < 0.9 * before["held_out_kl"][exit_layer]
    assert sum(after["agreement"].values()) > sum(before["agreement"].values())
    assert after["oracle_layers_per_token"] < before["oracle_layers_per_token"]


def test_facts_say_what_was_trained_and_are_those_on_disk(trained):
    out, facts = trained
    assert HeadFacts.model_validate_json((out / FACTS).read_bytes()) == facts
    assert facts.training["settings"]["learning_rate"] == 5e-3
    assert (facts.training["num_prompts"], facts.training["num_held_out_prompts"]) == (40, 8)
    assert facts.training["num_trained_tokens"] == 32 * 16
    assert set(facts.training["final_losses"]) == {"1", "2", "3"}
    assert sorted(path.name for path in out.iterdir()) == [FACTS, TENSORS, OUTPUTS]


def test_the_base_is_left_bit_for_bit(tmp_path):
    model = tiny_model("qwen2", tied=True)
    before = {name: p.clone() for name, p in model.lm.named_parameters()}
    attention = model.config._attn_implementation
    train(model, tmp_path)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.lm.named_parameters())
    assert model.config._attn_implementation == attention


def test_training_twice_gives_the_same_bits_and_another_seed_others(trained, tmp_path):
    first = (trained[0] / TENSORS).read_bytes()
    facts, _ = train(tiny_model(), tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == first
    assert facts == trained[1]
    train(tiny_model(), tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    assert (tmp_path / "other" / TENSORS).read_bytes() != first


def test_trained_heads_draft_in_the_engine_and_keep_every_bit(trained):
    model = tiny_model()
    heads = load_heads(trained[0], model)
    policy = make_policy(DecodeSettings(gamma=0.1), heads.exits, model.num_layers)
    width, num_accepted = step_width(policy.max_drafts), 0
    for prompt in PROMPTS[:4]:
        vanilla = generate(model, prompt, width=width, max_new_tokens=24, record_logits=True)
        early = generate(
            model, prompt, width=width, max_new_tokens=24, policy=policy, drafter=heads, record_logits=True
        )
        assert early.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(early.logits, vanilla.logits)
        num_accepted += early.generation.num_accepted
    assert num_accepted > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_trains_heads_of_its_dtype(dtype, tmp_path):
    model = tiny_model(dtype=dtype)
    facts, _ = train(model, tmp_path)
    assert facts.dtype == str(dtype).removeprefix("torch.")
    identity = ExitHeads(model, {e: torch.eye(model.width) for e in facts.exits})
    outputs = greedy_outputs(model, PROMPTS, CONFIG, tmp_path, lambda line: None)
    before = measure(model, identity, split_held_out(outputs, CONFIG.held_out, CONFIG.seed)[1], 128)
    assert facts.training["held_out_kl"]["1"] < before["held_out_kl"]["1"]


KILLED_RUN = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.unit.training.test_distill import train_slowly
train_slowly(Path(sys.argv[2]))
"""


def train_slowly(out: Path) -> None:
    """Trains as `trained` does with a checkpoint after every step, tells each line, and waits to be killed half-way."""

    def say(line: str) -> None:
        print(line, flush=True)
        if line.startswith("checkpoint at step 12/"):
            sys.stdin.read()

    train_heads(tiny_model(), PROMPTS, CONFIG, out, say, checkpoint_every_s=0.0)


def test_a_run_killed_in_the_middle_ends_in_the_bits_of_an_uninterrupted_one(trained, tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, str(ROOT), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = next((line for line in child.stdout if line.startswith("checkpoint at step 3/")), None)
        child.kill()
    assert seen is not None
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / FACTS).exists()

    facts, lines = train(tiny_model(), tmp_path)
    assert lines[0] == f"outputs: reusing 40 of {OUTPUTS}"
    assert lines[1].startswith("resuming at step ")
    assert facts == trained[1]
    assert (tmp_path / TENSORS).read_bytes() == (trained[0] / TENSORS).read_bytes()
    assert not (tmp_path / CHECKPOINT).exists()


class Interruption(Exception):
    pass


def interrupt_training(model, out, config=CONFIG, at="checkpoint at step 5/"):
    """Leaves a checkpoint in `out`, as a run does that ends there."""

    def say(line: str) -> None:
        if line.startswith(at):
            raise Interruption

    with pytest.raises(Interruption):
        train_heads(model, PROMPTS, config, out, say, checkpoint_every_s=0.0)
    assert (out / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("other_model", "changed"), [({"seed": 1}, {}), ({}, {"learning_rate": 1e-3}), ({}, {"exits": (2,)})]
)
def test_a_checkpoint_of_another_model_or_config_is_ignored_with_a_line(other_model, changed, trained, tmp_path):
    interrupt_training(tiny_model(**other_model), tmp_path, CONFIG.model_copy(update=changed))
    facts, lines = train(tiny_model(), tmp_path)
    assert "checkpoint.pt belongs to other settings, prompts or another model: training from the start" in lines
    assert facts == trained[1]


def test_a_damaged_checkpoint_is_ignored_with_a_line(trained, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    facts, lines = train(tiny_model(), tmp_path)
    assert "checkpoint.pt is damaged: training from the start" in lines
    assert facts == trained[1]


def test_progress_names_step_loss_per_exit_and_time_left(tmp_path):
    _, lines = train(tiny_model(), tmp_path)
    assert lines[0].startswith("outputs: 40/40 prompts, 640 tokens, 0 s left")
    steps = [line for line in lines if line.startswith("training: step ")]
    assert len(steps) == CONFIG.epochs
    assert all(f" {e}: " in steps[0] for e in (1, 2, 3))
    assert steps[-1].endswith(" 0 s left")


def test_kl_is_the_textbooks_sum_and_zero_for_the_final_layer_itself():
    model = tiny_model()
    hidden, transforms = torch.randn(2, 5, model.width), torch.randn(2, model.width, model.width)
    final_logits = model.lm_head(hidden[1])
    base = BasePass(list(hidden), final_logits)
    heads = ExitHeads(model, {1: transforms[0], 2: transforms[1]})
    expected = [
        torch.nn.functional.kl_div(
            heads.logits(e, h).log_softmax(-1), final_logits.log_softmax(-1), log_target=True, reduction="sum"
        )
        for e, h in zip(heads.exits, hidden, strict=True)
    ]
    torch.testing.assert_close(kl_sums(model, transforms, base), torch.stack(expected))
    identity = torch.eye(model.width).repeat(2, 1, 1)
    assert kl_sums(model, identity, base)[1].abs() < 1e-4


@pytest.mark.parametrize(("num_outputs", "share", "num_held_out"), [(2, 0.01, 1), (2, 0.99, 1), (50, 0.1, 5)])
def test_held_out_prompts_are_at_least_one_and_leave_one_to_train_on(num_outputs, share, num_held_out):
    outputs = [GreedyOutput([i], [i]) for i in range(num_outputs)]
    train_part, held_out = split_held_out(outputs, share, seed=0)
    assert len(held_out) == num_held_out
    assert sorted(train_part + held_out) == outputs


@pytest.mark.parametrize("exits", [(4,), (2, 9)])
def test_exits_outside_the_model_are_refused_before_anything_is_generated(exits, tmp_path):
    with pytest.raises(ExitHeadsError, match=r"must increase and lie in 1\.\.3"):
        train(tiny_model(), tmp_path / "out", CONFIG.model_copy(update={"exits": exits}))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another folder"):
        train(tiny_model(), tmp_path / "file" / "out")


def test_logits_that_are_not_finite_stop_the_training_with_one_line(tmp_path):
    model = tiny_model()
    model.lm.lm_head.weight.data[5, 0] = torch.inf
    with pytest.raises(NonFiniteLogitsError, match=r"training step 0: .* use --dtype float32"):
        train(model, tmp_path)


def test_a_finished_training_is_not_done_again(trained):
    before = (trained[0] / TENSORS).stat().st_mtime_ns
    facts, lines = train(tiny_model(), trained[0])
    assert facts == trained[1]
    assert lines[-1].endswith("these heads were trained before; delete the folder to train them again")
    assert (trained[0] / TENSORS).stat().st_mtime_ns == before
