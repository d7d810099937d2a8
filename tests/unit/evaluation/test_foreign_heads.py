"""Heads of a relative: those of a model draft for its fine-tune with parity, by a flag, and everything says so."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import adadecode
from adadecode.runs.folder import read_run, read_samples
from tests.folders import save_tiny_heads, save_tiny_model


@pytest.fixture(scope="module")
def fine_tune(tiny, tmp_path_factory):
    """The model of `tiny` with every weight a little different."""
    folder = tmp_path_factory.mktemp("relative") / "fine-tune"
    shutil.copytree(tiny.model, folder)
    generator = torch.Generator().manual_seed(7)
    weights = load_file(folder / "model.safetensors")
    moved = {name: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for name, t in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def run(cli, tiny, fine_tune, tmp_path_factory):
    """A run of the fine-tune with the heads of what it was made of, and what it printed."""
    out = tmp_path_factory.mktemp("foreign") / "run"
    result = cli("eval", "--local", *tiny.flags(model=fine_tune), "--foreign-heads", "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result.stdout


def test_foreign_heads_keep_parity_and_draft(run):
    location, printed = run
    assert "parity 5/5, logits 5/5" in printed
    rows = [row for row in read_samples(location).to_pylist() if row["method"] == "adadecode"]
    assert sum(row["num_drafted"] for row in rows) > 0


def test_run_json_the_table_and_the_page_say_that_heads_are_foreign(cli, run, tmp_path):
    location, printed = run
    (worker,) = read_run(location)["workers"]
    made_for = worker["foreign_heads"]["jsonl"]
    assert made_for != worker["model_hash"]
    line = f"foreign heads made for weights {made_for}, not {worker['model_hash']}"
    assert line in printed
    assert line in cli("report", location).stdout
    assert cli("verify", location).exit_code == 0
    compared = cli("compare", location, location)
    assert compared.exit_code == 0
    assert {f"{side}: {line}" in compared.stdout.replace("\n", " ") for side in "AB"} == {True}
    page = tmp_path / "page.html"
    assert cli("report", location, "--html", "--out", page).exit_code == 0
    assert line in page.read_text(encoding="utf-8")


def test_without_the_flag_the_refusal_names_it(usage_error, tiny, fine_tune, tmp_path):
    line = usage_error("eval", "--local", *tiny.flags(model=fine_tune), "--out", tmp_path / "run")
    assert "made for 'tiny' with weights" in line
    assert "or give --foreign-heads where it is a relative" in line


def test_heads_of_another_width_are_refused_with_the_flag_too(usage_error, tiny, tmp_path):
    wide = save_tiny_model(tmp_path / "wide", hidden_size=48, head_dim=12)
    heads = save_tiny_heads(tmp_path / "heads", wide, (1,))
    line = usage_error(
        "generate", "w5", "--model", tiny.model, "--heads", heads, "--foreign-heads", "--dtype", "float32"
    )
    assert "made for a model of width 48 and " in line
    assert "tokens, this one has width 32 and " in line


def test_the_flag_needs_heads_that_are_named(usage_error, tiny):
    line = usage_error("generate", "w5", "--model", tiny.model, "--foreign-heads")
    assert "--foreign-heads: no heads are named" in line


def test_own_heads_are_not_called_foreign_and_a_fingerprint_knows_the_flag(tiny):
    lm = adadecode.load(str(tiny.model), str(tiny.heads), dtype="float32", threads=1, foreign_heads=True)
    assert lm.heads is not None
    assert lm.heads.made_for is None
    assert not any("foreign" in note for note in lm.notes)
    plain, foreign = (adadecode.EvalConfig(model="m", heads="h", foreign_heads=on) for on in (False, True))
    assert plain.fingerprint() != foreign.fingerprint()


def test_doctor_and_bench_say_that_heads_are_foreign(cli, tiny, fine_tune, tmp_path):
    flags = tiny.flags(model=fine_tune, kernels="eager")
    result = cli("doctor", "--local", *flags, "--foreign-heads", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stdout
    assert "foreign heads made for weights" in result.stdout
    measured = cli(
        "bench", *tiny.flags(model=fine_tune, shard_size=None, max_new_tokens=4), "--foreign-heads", "--repeats", 1
    )
    assert measured.exit_code == 0, measured.stderr
    assert "foreign heads made for weights" in measured.stdout


@pytest.mark.parametrize("told", [71, None])
def test_heads_of_another_or_no_known_vocabulary_are_refused(usage_error, tiny, fine_tune, tmp_path, told):
    heads = shutil.copytree(tiny.heads, tmp_path / "heads")
    facts = json.loads((heads / "exit_heads.json").read_text())
    (heads / "exit_heads.json").write_text(json.dumps(facts | {"vocab_size": told}))
    line = usage_error(
        "generate", "w5", "--model", fine_tune, "--heads", heads, "--foreign-heads", "--dtype", "float32"
    )
    assert ("and 71 tokens, this one has width" if told else "a vocabulary that they do not tell") in line
