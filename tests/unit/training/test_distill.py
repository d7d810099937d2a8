"""Training exit heads: they get better, the base stays as it is, and an interrupted run ends in the same bits."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy, make_policy
from adadecode.errors import ExitHeadsError, NonFiniteLogitsError, RunFolderError
from adadecode.model.head_files import FACTS, TENSORS, HeadFacts, load_heads
from adadecode.model.head_tensors import HeadTensors
from adadecode.model.ngram_store import STORE
from adadecode.settings import DecodeSettings, TrainConfig
from adadecode.training.base_pass import measure
from adadecode.training.curves import CURVES, PICTURE
from adadecode.training.distill import CHECKPOINT
from adadecode.training.outputs import OUTPUTS_DIR, make_outputs
from adadecode.training.stream import OutputStream
from adadecode.training.train import train_heads, training_base
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
    part_prompts=7,
)


def train(model, out, config=CONFIG, **settings):
    """Facts and the lines said."""
    lines: list[str] = []
    return train_heads(model, PROMPTS, config, out, lines.append, **settings), lines


def held_out_batches(model, out):
    parts = make_outputs(model, PROMPTS, CONFIG, out, lambda line: None)
    stream = OutputStream(out, parts, held_out=CONFIG.held_out, seed=CONFIG.seed, batch_tokens=128)
    return stream.held_out_batches()


def identity_heads(model, exits):
    return HeadTensors({e: (torch.eye(model.width),) for e in exits}).on(model)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder and facts of one finished training of `tiny_model()`."""
    out = tmp_path_factory.mktemp("heads")
    facts, _ = train(tiny_model(), out)
    return out, facts


def test_training_beats_identity_heads_on_held_out_prompts(trained):
    _, facts = trained
    model = tiny_model()
    before = measure(model, identity_heads(model, facts.exits), held_out_batches(model, trained[0]))
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
    assert sorted(path.name for path in out.iterdir()) == sorted([FACTS, TENSORS, STORE, OUTPUTS_DIR, CURVES, PICTURE])
    assert (facts.kind, facts.training["compute_dtype"]) == ("transform", "float32")


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
    num_accepted = 0
    for prompt in PROMPTS[:4]:
        request = Request(prompt, 24, record_logits=True)
        vanilla = generate(model, request, Policy(rows=policy.width))
        early = generate(model, request, policy, drafters_of(policy, heads))
        assert early.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(early.logits, vanilla.logits)
        num_accepted += early.generation.num_accepted
    assert num_accepted > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_trains_heads_of_its_dtype(dtype, tmp_path):
    model = tiny_model(dtype=dtype)
    facts, _ = train(model, tmp_path)
    assert facts.dtype == str(dtype).removeprefix("torch.")
    before = measure(model, identity_heads(model, facts.exits), held_out_batches(model, tmp_path))
    assert facts.training["held_out_kl"]["1"] < before["held_out_kl"]["1"]


KILLED_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.unit.training.test_distill import train_until
train_until(Path(sys.argv[2]), sys.argv[3])
"""


def train_until(out: Path, at: str) -> None:
    """Trains as `trained` does with a checkpoint after every step, tells each line, and waits at `at` to be killed."""

    def say(line: str) -> None:
        print(line, flush=True)
        if line.startswith(at):
            sys.stdin.read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adadecode.training.outputs.PROGRESS_EVERY_S", 0.0)
        train_heads(tiny_model(), PROMPTS, CONFIG, out, say, checkpoint_every_s=0.0)


def kill_at(out: Path, at: str) -> None:
    """A real process that trains into `out` and is killed with SIGKILL when it has said `at`."""
    command = [sys.executable, "-c", KILLED_RUN, str(ROOT), str(out), at]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = next((line for line in child.stdout if line.startswith(at)), None)
        child.kill()
    assert seen is not None
    assert child.returncode == -signal.SIGKILL
    assert not (out / FACTS).exists()


def part_names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / OUTPUTS_DIR).glob("*.parquet"))


# The first, within an epoch; the second, the last of an epoch before its held-out point.
@pytest.mark.parametrize("step", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_in_training_ends_in_the_bits_of_an_uninterrupted_one(step, trained, tmp_path):
    kill_at(tmp_path, f"checkpoint at step {step}")
    assert (tmp_path / CHECKPOINT).exists()
    facts, lines = train(tiny_model(), tmp_path)
    assert lines[0] == "outputs: reusing 7 of part-00000.parquet"
    assert lines[6] == f"{tmp_path / STORE}: made before from these outputs"
    assert lines[7].startswith(f"resuming at step {step}, ")
    assert facts == trained[1]
    for name in (TENSORS, CURVES, PICTURE):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_run_killed_in_generation_makes_only_the_missing_parts_and_ends_in_the_same_bits(trained, tmp_path):
    kill_at(tmp_path, "outputs: 21/40")  # the third part's outputs are there but not stored
    assert part_names(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]
    written_ns = [(tmp_path / OUTPUTS_DIR / name).stat().st_mtime_ns for name in part_names(tmp_path)]
    facts, lines = train(tiny_model(), tmp_path)
    assert lines[:2] == [f"outputs: reusing 7 of part-0000{i}.parquet" for i in (0, 1)]
    assert not any("reusing" in line for line in lines[2:])
    names = part_names(tmp_path)
    assert names == part_names(trained[0])
    assert [(tmp_path / OUTPUTS_DIR / name).stat().st_mtime_ns for name in names[:2]] == written_ns
    for name in names:
        assert (tmp_path / OUTPUTS_DIR / name).read_bytes() == (trained[0] / OUTPUTS_DIR / name).read_bytes()
    assert facts == trained[1]
    assert (tmp_path / TENSORS).read_bytes() == (trained[0] / TENSORS).read_bytes()


class Interruption(Exception):
    pass


def interrupt_training(model, out, config=CONFIG, at="checkpoint at step 5"):
    """Leaves a checkpoint in `out`, as a run does that ends there."""

    def say(line: str) -> None:
        if line.startswith(at):
            raise Interruption

    with pytest.raises(Interruption):
        train_heads(model, PROMPTS, config, out, say, checkpoint_every_s=0.0)
    assert (out / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("other_model", "changed"),
    [
        ({"seed": 1}, {}),
        ({}, {"learning_rate": 1e-3}),
        ({}, {"exits": (2,)}),
        ({}, {"kind": "full"}),
        ({}, {"kl_top_k": 9}),
        ({}, {"held_out": 0.3}),
    ],
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
    steps = [line for line in lines if line.startswith("training: step ") and " 25.0% of 4 epochs, " in line]
    assert len(steps) == 1
    steps = [line for line in lines if line.startswith("training: step ")]
    assert len(steps) == CONFIG.epochs
    assert all(f" {e}: " in steps[0] for e in (1, 2, 3))
    assert steps[-1].endswith(" 0 s left")


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


def test_a_finished_training_with_another_shortlist_is_done_again(tmp_path):
    train(tiny_model(), tmp_path)
    facts, _ = train(tiny_model(), tmp_path, CONFIG.model_copy(update={"shortlist_len": 5}))
    assert facts.training["shortlist_len"] == 5
    assert load_heads(tmp_path, tiny_model(), "shortlist").exits == (1, 2, 3)


def test_curves_have_every_exit_of_both_splits_and_end_where_the_report_is(trained):
    out, facts = trained
    rows = pq.read_table(out / CURVES).to_pylist()
    for exit_layer in facts.exits:
        held_out = [row for row in rows if (row["exit"], row["split"]) == (exit_layer, "held_out")]
        assert [row["epoch"] for row in held_out] == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert held_out[-1]["kl"] == pytest.approx(facts.training["held_out_kl"][str(exit_layer)], abs=1e-5)
        assert held_out[-1]["agreement"] == facts.training["agreement"][str(exit_layer)]
        train_rows = [row for row in rows if (row["exit"], row["split"]) == (exit_layer, "train")]
        assert [row["step"] for row in train_rows] == list(range(1, facts.training["num_steps"] + 1))
        assert train_rows[-1]["num_tokens"] == 4 * facts.training["num_trained_tokens"]
    assert "<svg" in (out / PICTURE).read_text()


def test_without_matplotlib_the_table_is_written_and_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, lines = train(tiny_model(), tmp_path)
    assert [line for line in lines if "matplotlib is not installed" in line]
    assert (tmp_path / CURVES).exists()
    assert not (tmp_path / PICTURE).exists()


def test_a_half_precision_base_on_a_cpu_is_trained_against_in_float32_with_its_own_weights(tmp_path):
    model = tiny_model(dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in model.lm.named_parameters()}
    facts, _ = train(model, tmp_path)
    assert (facts.dtype, facts.training["compute_dtype"]) == ("bfloat16", "float32")
    assert facts.base_model_hash == model.model_hash == training_base(model).model_hash
    for name, parameter in training_base(model).lm.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name].float())
    assert all(torch.equal(p, before[name]) for name, p in model.lm.named_parameters())
    assert load_heads(tmp_path, model).exits == facts.exits
