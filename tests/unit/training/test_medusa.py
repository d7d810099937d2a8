"""Medusa heads: they learn to look ahead, are saved whole, and are refused where they cannot be used."""

import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from adadecode.errors import ExitHeadsError, UsageError
from adadecode.model.head_files import HeadFacts, load_heads
from adadecode.model.medusa_heads import FACTS, TENSORS, load_medusa_heads
from adadecode.settings import TrainConfig
from adadecode.training.base_pass import run_base, shifted
from adadecode.training.curves import CURVES, PICTURE
from adadecode.training.distill import CHECKPOINT
from adadecode.training.kinds import MedusaHead
from adadecode.training.medusa import check_outputs_reach, gamma_table
from adadecode.training.outputs import OUTPUTS_DIR, GreedyOutput
from adadecode.training.stream import OutputStream
from adadecode.training.train import train_heads
from tests.models import tiny_model

ROOT = Path(__file__).parents[3]
RNG = random.Random(0)
PROMPTS = [[RNG.randrange(97) for _ in range(RNG.randrange(2, 10))] for _ in range(40)]
CONFIG = TrainConfig(
    model="tiny",
    task="jsonl",
    kind="medusa",
    ahead=3,
    max_new_tokens=24,
    epochs=8,
    batch_tokens=128,
    held_out=0.2,
    learning_rate=2e-2,
    dtype="float32",
    shortlist_len=97,
)


def train(out, config=CONFIG, **settings):
    """Facts and the lines said."""
    lines: list[str] = []
    return train_heads(tiny_model(), PROMPTS, config, out, lines.append, **settings), lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, facts and lines of one finished training of `tiny_model()`."""
    out = tmp_path_factory.mktemp("medusa")
    return out, *train(out)


def test_places_move_by_whole_positions_and_nothing_comes_round():
    predicts = torch.tensor([[False, True, True, True, False], [True, False, False, False, True]])
    assert shifted(predicts, 2).tolist() == [[False, False, False, True, True], [False, False, True, False, False]]
    assert shifted(predicts, -2).tolist() == [[True, True, False, False, False], [False, False, True, False, False]]
    assert not shifted(predicts, 5).any()
    assert not shifted(predicts, -7).any()
    assert torch.equal(shifted(predicts, 0), predicts)


@pytest.mark.parametrize("ahead", [1, 2, 3, 9])
def test_a_head_reads_the_state_so_many_places_before_the_position_that_predicts_its_token(ahead):
    model = tiny_model()
    outputs = [GreedyOutput([3, 1, 4], [1, 5, 9, 2]), GreedyOutput([9, 2, 6, 5, 3], [5, 8]), GreedyOutput([9], [3])]
    base = run_base(model, outputs, (model.num_layers,))
    head = MedusaHead(model, torch.arange(model.vocab_size), ahead)
    read, told = base.read_by(model, 0, head), base.final_logits[base.told_by(head)]
    pairs = []  # (state, what it should tell), output by output
    for row, (prompt_ids, output_ids) in enumerate(outputs):
        normed = model.final_norm(base.hidden[0][row])
        first = len(prompt_ids) - 1
        pairs += [
            (normed[first + i], model.lm.lm_head(normed[first + i + ahead])) for i in range(len(output_ids) - ahead)
        ]
    assert len(read) == len(told) == len(pairs)
    for (state, logits), one, other in zip(pairs, read, told, strict=True):
        torch.testing.assert_close(one, state)
        torch.testing.assert_close(other, logits)


def test_heads_learn_what_the_model_says_later(trained):
    out, facts, lines = trained
    agreement = facts.training["agreement"]
    assert set(agreement) == {"1", "2", "3"}
    assert len(facts.training["gamma_table"]) == 3 * 8
    points = [point for point in pq.read_table(out / CURVES).to_pylist() if point["split"] == "held_out"]
    for ahead in (1, 2, 3):
        before, *_, after = [point for point in points if point["exit"] == ahead]
        assert after["kl"] < 0.9 * before["kl"]
        assert after["agreement"] == agreement[str(ahead)]
    for ahead, share in agreement.items():
        assert any(line.startswith(f"{ahead} ahead: agrees with the final layer on {share:.1%}") for line in lines)


def stored_outputs(out: Path) -> list[GreedyOutput]:
    tables = [pq.read_table(path) for path in sorted((out / OUTPUTS_DIR).glob("part-*"))]
    columns = [[table[name].to_pylist() for table in tables] for name in ("prompt_token_ids", "output_token_ids")]
    return [GreedyOutput(*row) for row in zip(*map(itertools.chain.from_iterable, columns), strict=True)]


def test_the_report_is_of_every_held_out_position_also_where_temperatures_are_fitted_on_few(tmp_path, monkeypatch):
    monkeypatch.setattr("adadecode.training.medusa.MOST_LOGITS", 97)
    facts, _ = train(tmp_path, CONFIG.model_copy(update={"epochs": 1, "held_out": 0.9}))
    num_tokens = facts.training["num_held_out_tokens"] + facts.training["num_trained_tokens"]
    assert num_tokens == sum(len(output.output_ids) for output in stored_outputs(tmp_path))


def test_a_gamma_table_counts_what_the_heads_propose(trained):
    out, _, _ = trained
    model, outputs = tiny_model(), stored_outputs(out)
    heads = load_medusa_heads(out, model)
    heads = replace(heads, temperatures=heads.temperatures * 0.05)  # so sure that they draft, rightly or wrongly
    rows = {(row["exit"], row["gamma"]): row for row in gamma_table(model, heads, [outputs[:20], outputs[20:]])}
    seen: list[tuple[int, bool, bool]] = []  # how far ahead, whether drafted at a gamma of 0.5, whether right
    for output in outputs:
        (hidden,), first = run_base(model, [output], (model.num_layers,)).hidden, len(output.prompt_ids) - 1
        for idx in range(len(output.output_ids)):
            proposals = zip(heads.proposals(hidden[0, first + idx], 3), output.output_ids[idx + 1 :], strict=False)
            seen += [(i + 1, confidence > 0.5, one == other) for i, ((one, confidence), other) in enumerate(proposals)]
    for ahead in (1, 2, 3):
        drafted = [is_right for place, is_drafted, is_right in seen if place == ahead and is_drafted]
        assert len(drafted) > sum(drafted) > 0
        num_told = sum(place == ahead for place, *_ in seen)
        assert rows[ahead, 0.5]["draft_rate"] == len(drafted) / num_told
        assert rows[ahead, 0.5]["precision"] == sum(drafted) / len(drafted)


def test_the_files_are_those_of_the_facts_and_the_same_command_trains_nothing_again(trained):
    out, facts, _ = trained
    assert sorted(path.name for path in out.iterdir()) == sorted([FACTS, TENSORS, OUTPUTS_DIR, CURVES, PICTURE])
    assert HeadFacts.model_validate_json((out / FACTS).read_bytes()) == facts
    assert (facts.kind, facts.exits) == ("medusa", ())
    heads = load_medusa_heads(out, tiny_model())
    assert (heads.num_heads, len(heads.token_ids)) == (3, 97)
    again, lines = train(out)
    assert again == facts
    assert any("trained before" in line for line in lines)


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bits(trained, tmp_path):
    """SIGKILL after a checkpoint, then the same command."""
    whole, _, _ = trained
    out = tmp_path / "heads"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.unit.training.test_medusa import CONFIG, PROMPTS\n"
        "from adadecode.training.train import train_heads; from tests.models import tiny_model\n"
        "def say(line):\n"
        "    if line.startswith('checkpoint at step 20'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_heads(tiny_model(), PROMPTS, CONFIG, Path(sys.argv[1]), say, checkpoint_every_s=0.0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (out / CHECKPOINT).is_file()
    train(out)
    expected, found = load_file(whole / TENSORS), load_file(out / TENSORS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_heads_that_would_look_past_every_output_are_refused_before_any_is_made(tmp_path):
    with pytest.raises(UsageError, match="--ahead 3: outputs of --max-new-tokens 3 do not reach so far"):
        train(tmp_path, CONFIG.model_copy(update={"max_new_tokens": 3}))
    assert not list(tmp_path.iterdir())


class ShortOutputs(OutputStream):
    """One output of so many tokens to train on, one held out."""

    def __init__(self, train_len: int, held_out_len: int) -> None:
        self.train, self.held_out = (GreedyOutput([1], list(range(length))) for length in (train_len, held_out_len))

    def train_outputs(self) -> Iterator[GreedyOutput]:
        yield self.train

    def held_out_batches(self) -> Iterator[list[GreedyOutput]]:
        yield [self.held_out]


@pytest.mark.parametrize(("lens", "purpose"), [((3, 4), "to train on"), ((4, 3), "held out")])
def test_outputs_too_short_to_look_ahead_in_are_refused_in_one_line(lens, purpose):
    check_outputs_reach(ShortOutputs(*lens), 2)
    with pytest.raises(UsageError, match=f"--ahead 3: no output {purpose} is longer than that; give a lower --ahead"):
        check_outputs_reach(ShortOutputs(*lens), 3)


def altered(folder: Path, to: Path, **tensors) -> Path:
    """A copy of the heads in `folder` with other `tensors`."""
    to.mkdir()
    (to / FACTS).write_bytes((folder / FACTS).read_bytes())
    save_file(load_file(folder / TENSORS) | tensors, to / TENSORS)
    return to


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"residuals": torch.zeros(3, 8, 8)}, "do not fit a model of width"),
        ({"residuals": torch.zeros(0, 32, 32)}, "do not fit"),
        ({"token_ids": torch.tensor([5, 97], dtype=torch.int32)}, "do not fit .* 97 tokens"),
        ({"token_ids": torch.zeros(0, dtype=torch.int32)}, "do not fit"),
        ({"temperatures": torch.ones(2)}, "do not fit"),
        ({"temperatures": torch.tensor([1.0, 0.0, 1.0])}, "a temperature is not above 0"),
        ({"temperatures": torch.tensor([1.0, float("inf"), 1.0])}, "not all of their numbers are finite"),
        ({"residuals": torch.full((3, 32, 32), float("nan"))}, "not all of their numbers are finite"),
        ({"residuals": torch.zeros(3, 32, 32, dtype=torch.int32)}, "not all of their numbers are finite"),
        ({"unknown": torch.zeros(1)}, "damaged"),
    ],
)
def test_heads_that_fit_no_model_are_refused_in_one_line(trained, tmp_path, tensors, why):
    folder = altered(trained[0], tmp_path / "heads", **tensors)
    with pytest.raises(ExitHeadsError, match=f"--medusa-heads '.*': .*{why}") as refused:
        load_medusa_heads(folder, tiny_model())
    assert "train-heads --kind medusa" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_of_another_model_damaged_ones_and_none_are_refused(trained, tmp_path):
    out, _, _ = trained
    with pytest.raises(ExitHeadsError, match="made for 'tiny' with weights"):
        load_medusa_heads(out, tiny_model(seed=3))
    with pytest.raises(ExitHeadsError, match=r"no medusa_heads\.json with medusa_heads\.safetensors there"):
        load_medusa_heads(tmp_path, tiny_model())
    with pytest.raises(ExitHeadsError, match=r"no exit_heads\.json"):
        load_heads(out, tiny_model())
    newer = altered(out, tmp_path / "newer")
    (newer / FACTS).write_text((out / FACTS).read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ExitHeadsError, match="their format_version is 2, this program knows 1: update it, or train"):
        load_medusa_heads(newer, tiny_model())
    broken = altered(out, tmp_path / "broken")
    (broken / TENSORS).write_bytes((out / TENSORS).read_bytes()[:100])
    with pytest.raises(ExitHeadsError, match="the files are damaged"):
        load_medusa_heads(broken, tiny_model())
