"""Medusa heads from training to a table: made by the command, measured, checked, refused where they cannot be used."""

import re
import shutil

import pytest
import yaml

from adadecode.language_model import load
from adadecode.model.medusa_heads import FACTS, TENSORS
from adadecode.runs.folder import read_run, read_samples
from tests.folders import save_tiny_model


@pytest.fixture(scope="module")
def heads(cli, tiny, tmp_path_factory):
    """Medusa heads for the tiny model, and what the training printed."""
    out = tmp_path_factory.mktemp("medusa") / "heads"
    flags = ("--model", tiny.model, "--dtype", "float32", "--task", "jsonl", "--data-file", tiny.prompts)
    trained = cli("train-heads", *flags, "--kind", "medusa", "--ahead", 3, "--max-new-tokens", 16, "--out", out)
    assert trained.exit_code == 0, trained.output
    return out, trained.stdout


def test_training_prints_how_often_each_head_is_right(heads):
    _, printed = heads
    assert re.search(r"ahead +agree +KL +γ 0\.5", printed)
    assert all(re.search(rf"^ +{ahead} +\d+\.\d%", printed, re.MULTILINE) for ahead in (1, 2, 3))


def test_a_run_is_exact_and_knows_its_heads(cli, tiny, heads, tmp_path):
    flags = tiny.flags(heads=None, methods="vanilla,medusa", medusa_heads=heads[0])
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 5/5, logits 5/5" in result.stdout
    assert cli("verify", tmp_path / "run").exit_code == 0
    rows = [row for row in read_samples(tmp_path / "run").to_pylist() if row["method"] == "medusa"]
    assert [row["exits"] for row in rows] == [[0]] * 5
    assert sum(row["num_drafted"] for row in rows) > 0
    run = read_run(tmp_path / "run")
    (worker,) = run["workers"]
    assert set(worker["medusa_heads_hash"]) == {"jsonl"}
    assert "medusa_files_jsonl" in run["provenance"]["hashes"]


def test_other_heads_behind_the_folder_are_another_run(cli, usage_error, tiny, heads, tmp_path):
    folder = tmp_path / "heads"
    folder.mkdir()
    for name in (TENSORS, FACTS):
        shutil.copy(heads[0] / name, folder / name)
    flags = tiny.flags(heads=None, methods="vanilla,medusa", medusa_heads=folder)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    facts = (folder / FACTS).read_text()
    (folder / FACTS).write_text(facts.replace('"base_model": "', '"base_model": "another '))
    line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    assert "the model, heads or data behind the same settings changed" in line


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {},
            r"--medusa-heads is missing: medusa drafts with them; give a folder that `train-heads --kind medusa` wrote",
        ),
        ({"medusa_heads": "no/such"}, r"--medusa-heads 'no/such'"),
        ({"medusa_heads": "demo"}, r"--medusa-heads '.*': made for 'demo' with weights .*, this model's are"),
        (
            {"methods": "vanilla,ngram", "medusa_gamma": 0.5},
            r"--medusa-gamma 0.5: none of --methods reads it; add medusa",
        ),
        ({"medusa_heads": "demo", "medusa_gamma": 1.0}, r"--medusa-gamma 1.0: .*less than 1"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_runs(usage_error, tiny, tmp_path, changed, line):
    flags = tiny.flags(**{"heads": None, "methods": "vanilla,medusa", **changed})
    assert re.search(line, usage_error("eval", "--local", *flags, "--out", tmp_path / "run"))
    assert not list(tmp_path.glob("run/samples/*"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--kind", "medusa", "--exits", "1"), r"--exits: heads of --kind medusa read the last layer; drop it"),
        (("--ahead", "3"), r"--ahead 3: only heads of --kind medusa look ahead, not transform; drop it"),
        (("--kind", "medusa", "--ahead", "0"), r"--ahead 0: .*greater than or equal to 1"),
        (("--kind", "medusa", "--store-mb", "1"), r"--store-mb 1: heads of --kind medusa have no n-grams beside them"),
        (
            ("--kind", "medusa", "--max-new-tokens", "4"),
            r"--ahead 4: outputs of --max-new-tokens 4 do not reach so far",
        ),
        (("--kind", "medusa", "--kl-top-k", "5"), r"--kl-top-k 5: --kind medusa trains on no such KL; drop it"),
    ],
)
def test_settings_of_a_training_without_effect_are_refused(usage_error, tiny, tmp_path, flags, line):
    given = ("--model", tiny.model, "--task", "jsonl", "--data-file", tiny.prompts, *flags, "--out", tmp_path / "heads")
    assert re.search(line, usage_error("train-heads", *given))


def test_a_sweep_refuses_heads_that_are_not_there_before_its_first_cell(usage_error, tiny, tmp_path):
    cells = {"one": {"methods": "vanilla,ngram"}, "two": {"methods": "vanilla,medusa", "medusa_heads": str(tmp_path)}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"cells": cells}))
    line = usage_error(
        "sweep", "--local", *tiny.flags(heads=None, gamma=None), "--config", file, "--out", tmp_path / "sweep"
    )
    assert re.search(r"cell 'two': --medusa-heads '.*': no finished heads there; train them first", line)
    assert not (tmp_path / "sweep").exists()


def test_the_demo_drafts_with_its_own_heads_of_the_prompts_domain_and_its_own_draft_model(cli, tmp_path):
    methods = ("--methods", "vanilla,medusa,speculative", "--medusa-heads", "demo", "--draft-model", "demo-draft")
    flags = ("--limit", 1, "--max-new-tokens", 48, "--threads", 1)
    result = cli("eval", "--local", "--task", "demo", *flags, *methods, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 4/4, logits 4/4" in result.stdout
    (worker,) = read_run(tmp_path / "run")["workers"]
    hashes = worker["medusa_heads_hash"]
    assert set(hashes) == {"demo-math", "demo-code"}
    assert hashes["demo-math"] != hashes["demo-code"]
    rows = read_samples(tmp_path / "run").to_pylist()
    assert all(row["num_accepted"] > 0 for row in rows if row["method"] != "vanilla")


def test_the_library_generates_with_them(heads, tiny):
    lm = load(str(tiny.model), dtype="float32", threads=1, medusa_heads=str(heads[0]))
    generation = lm.generate("w5 w6 w7", method="medusa", max_new_tokens=12).generation
    vanilla = lm.generate("w5 w6 w7", method="vanilla", max_new_tokens=12).generation
    assert generation.output_token_ids == vanilla.output_token_ids
    assert generation.num_drafted > 0


def test_heads_of_another_model_are_refused_by_name(usage_error, tiny, heads, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=5)
    flags = tiny.flags(heads=None, model=other, methods="vanilla,medusa", medusa_heads=heads[0])
    assert "made for" in usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
