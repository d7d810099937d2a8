"""Runs of the methods that adadecode is compared with: rows, tables, checks, and what is refused before anything runs."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import LlamaForCausalLM

import adadecode
from adadecode.engine.draft_model import ModelDrafter
from adadecode.engine.drafters import HeadDrafter
from adadecode.runs.folder import read_run, read_samples
from tests.folders import save_tiny_model
from tests.models import tiny_lm

EXACT = "vanilla,adadecode,ngram,layerskip"


def rows_by_method(out) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for row in read_samples(out).to_pylist():
        rows.setdefault(row["method"], []).append(row)
    return rows


def test_a_run_of_rivals_is_exact_and_can_be_checked(cli, tiny, tmp_path):
    flags = tiny.flags(methods=EXACT, layerskip_exit=2, layerskip_drafts=9)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 15/15, logits 15/15" in result.stdout
    verified = cli("verify", tmp_path / "run")
    assert verified.exit_code == 0, verified.stdout
    rows = rows_by_method(tmp_path / "run")
    exits = {method: {tuple(row["exits"] or ()) for row in of_method} for method, of_method in rows.items()}
    assert exits == {"vanilla": {()}, "adadecode": {(1, 2)}, "ngram": {(0,)}, "layerskip": {(2,)}}
    assert {row["width"] for of_method in rows.values() for row in of_method} == {16}, "as wide as 9 drafts need"
    (worker,) = read_run(tmp_path / "run")["workers"]
    assert worker["draft_exits"] == {"jsonl": {"adadecode": [1, 2], "ngram": [0], "layerskip": [2]}}


def test_ngrams_need_no_heads(cli, tiny, tmp_path):
    result = cli("eval", "--local", *tiny.flags(heads=None, methods="vanilla,ngram"), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 5/5, logits 5/5" in result.stdout
    assert cli("verify", tmp_path / "run").exit_code == 0


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """The model less its last layer, and so often right."""
    folder = save_tiny_model(tmp_path_factory.mktemp("draft") / "model")
    lm = tiny_lm()
    del lm.model.layers[3]
    lm.config.num_hidden_layers = 3
    lm.save_pretrained(folder)
    return folder


def without_exits(path: Path, **others: object) -> Path:
    """A policy file without exits, and `others`."""
    path.write_text(yaml.safe_dump({"exits": [], **others}))
    return path


def test_a_policy_without_exits_needs_no_heads(cli, tiny, draft, tmp_path):
    policy = without_exits(tmp_path / "policy.yaml", ngram=0.3)
    methods = "vanilla,adadecode,adadecode-unverified,adadecode-never,ngram,speculative"
    flags = tiny.flags(heads=None, policy=policy, methods=methods, draft_model=draft)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 20/20, logits 20/20" in result.stdout
    assert cli("verify", tmp_path / "run").exit_code == 0
    rows = rows_by_method(tmp_path / "run")
    exits = {method: {tuple(row["exits"] or ()) for row in of_method} for method, of_method in rows.items()}
    assert exits == {"vanilla": {()}, "adadecode-never": {()}} | {
        method: {(0,)} for method in ("adadecode", "adadecode-unverified", "ngram", "speculative")
    }
    bench = (
        "bench",
        "--repeats",
        1,
        *tiny.flags(heads=None, policy=policy, methods="vanilla,adadecode", shard_size=None),
    )
    assert cli(*bench, "--out", tmp_path / "bench").exit_code == 0
    generated = adadecode.load(str(tiny.model), policy=str(policy), dtype="float32", threads=1, max_new_tokens=6)
    by_both = [generated.generate("w10 w20", method=name).generation for name in ("vanilla", "adadecode")]
    assert by_both[0].output_token_ids == by_both[1].output_token_ids


def test_layerskip_drafts_at_any_exit_by_the_models_own_head(cli, usage_error, tiny, tmp_path):
    flags = {"heads": "original", "methods": "vanilla,adadecode,layerskip", "limit": 2}
    result = cli("eval", "--local", *tiny.flags(**flags, layerskip_exit=3, exits=1), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    rows = rows_by_method(tmp_path / "run")
    assert [rows[method][0]["exits"] for method in ("adadecode", "layerskip")] == [[1], [3]]
    line = usage_error("eval", "--local", *tiny.flags(**flags, layerskip_exit=4), "--out", tmp_path / "other")
    assert "--layerskip-exit 4: give one from 1 to 3, the exits of this model" in line


def test_layerskip_needs_heads_whatever_the_policys_exits(usage_error, tiny, tmp_path):
    policy = without_exits(tmp_path / "policy.yaml")
    flags = tiny.flags(heads=None, policy=policy, methods="vanilla,layerskip")
    assert "--heads is missing" in usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    flags = tiny.flags(policy=policy, methods="vanilla,layerskip", layerskip_exit=3)
    line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    assert re.search(r"--layerskip-exit 3: there are no heads at \[3\].*are at 1,2", line)


def test_a_run_with_a_draft_model_is_exact_and_knows_it(cli, tiny, draft, tmp_path):
    methods = "vanilla,speculative,transformers,hf-prompt-lookup,hf-early-exit,hf-assisted"
    flags = tiny.flags(heads=None, methods=methods, draft_model=draft, layerskip_exit=3)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "parity 5/5, logits 5/5" in result.stdout
    verified = cli("verify", tmp_path / "run")
    assert verified.exit_code == 0, verified.stdout
    rows = rows_by_method(tmp_path / "run")
    for method, exits in (
        ("speculative", [0]),
        ("hf-prompt-lookup", [0]),
        ("hf-early-exit", [3]),
        ("hf-assisted", [0]),
    ):
        assert [row["exits"] for row in rows[method]] == [exits] * 5
        assert [row["output_token_ids"] for row in rows[method]] == [row["output_token_ids"] for row in rows["vanilla"]]
        assert sum(row["num_accepted"] for row in rows[method]) > 0, method
    run = read_run(tmp_path / "run")
    (worker,) = run["workers"]
    assert worker["draft_model_hash"] not in (None, worker["model_hash"])
    assert (worker["draft_model_notes"], worker["draft_model_commit"]) == ([], None)
    assert run["provenance"]["hashes"]["draft_model_files"] != run["provenance"]["hashes"]["model_files"]


def test_another_draft_model_behind_its_name_is_another_run(cli, usage_error, tiny, tmp_path):
    folder = save_tiny_model(tmp_path / "draft", num_layers=2)
    flags = tiny.flags(heads=None, methods="vanilla,speculative", draft_model=folder)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    save_tiny_model(folder, num_layers=2, seed=1)
    line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    assert "the model, heads or data behind the same settings changed" in line


def test_a_draft_model_of_other_tokens_is_refused(usage_error, tiny, tmp_path):
    folder = save_tiny_model(tmp_path / "draft", vocab_size=60)
    flags = tiny.flags(heads=None, methods="vanilla,speculative", draft_model=folder)
    line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    assert re.search(r"^adadecode: --draft-model '.*': its tokenizer is not that of --model '.*': ", line)
    assert "token 60 is nothing there and 'w60' here, and 37 of 97 differ" in line
    assert not list(tmp_path.glob("run/samples/*"))


def test_a_draft_model_whose_logits_are_not_finite_is_refused(usage_error, tiny, tmp_path):
    """It would draft nothing, and look like a rival that is slow."""
    folder = save_tiny_model(tmp_path / "draft")
    lm = tiny_lm()
    lm.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    lm.save_pretrained(folder)
    flags = tiny.flags(heads=None, methods="vanilla,speculative", draft_model=folder)
    line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    assert re.search(
        r"--draft-model: its logits are not finite in float32, .*layers\.1\..* holds NaN or infinity", line
    )


def test_layer_skipping_is_lossy_and_its_run_can_be_checked(cli, tiny, tmp_path):
    flags = tiny.flags(heads=None, methods="vanilla,layer-skipping", skip_layers="2,3")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"layer-skipping: \d of 5 outputs differ from vanilla's \(lossy by design\)", result.stdout)
    verified = cli("verify", tmp_path / "run")
    assert verified.exit_code == 0, verified.stdout
    rows = rows_by_method(tmp_path / "run")
    assert {row["layers_per_token"] for row in rows["layer-skipping"]} == {2.0}
    assert {row["lossy"] for row in rows["layer-skipping"]} == {True}


FAILS = {"speculative": (ModelDrafter, "propose"), "layerskip": (HeadDrafter, "propose")}


@pytest.mark.parametrize(("failing", "warmup"), [("layerskip", 0), ("speculative", 1)])
def test_a_method_that_fails_takes_no_others_rows_with_it(cli, tiny, draft, tmp_path, monkeypatch, failing, warmup):
    """Neither in its rows nor before them, where it is warmed up."""
    monkeypatch.setattr(*FAILS[failing], lambda *_: 1 / 0)
    methods = "vanilla,ngram,layerskip,speculative,transformers"
    flags = tiny.flags(methods=methods, draft_model=draft, warmup=warmup, max_errors="100%")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 1, result.stderr
    assert f"5 of 5 samples failed: {failing} 5 rows (5 ZeroDivisionError)" in result.stdout + result.stderr
    rows = rows_by_method(tmp_path / "run")
    assert {method: {row["status"] for row in of_method} for method, of_method in rows.items()} == {
        method: {"error" if method == failing else "ok"} for method in methods.split(",")
    }
    assert {row["parity"] for method in ("ngram", "transformers") for row in rows[method]} == {"exact"}


def test_an_early_exit_of_transformers_that_fails_leaves_the_methods_after_it_their_layers(
    cli, tiny, tmp_path, monkeypatch
):
    """The model has fewer layers while transformers drafts, and in it is where this fails."""
    generate = LlamaForCausalLM.forward

    def failing(lm, *arguments, **inputs):
        assert lm.config.num_hidden_layers == 4, "an early exit"
        return generate(lm, *arguments, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", failing)
    flags = tiny.flags(heads=None, methods="vanilla,hf-early-exit,transformers", warmup=0, max_errors="100%")
    monkeypatch.setattr("adadecode.engine.decode.check_transformers", lambda *_: None)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 1
    rows = rows_by_method(tmp_path / "run")
    assert {row["error_type"] for row in rows["hf-early-exit"]} == {"AssertionError"}
    assert [row["output_token_ids"] for row in rows["transformers"]] == [
        row["output_token_ids"] for row in rows["vanilla"]
    ]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"methods": EXACT, "layerskip_exit": 3}, r"--layerskip-exit 3: there are no heads at \[3\].*are at 1,2"),
        ({"methods": EXACT, "layerskip_exit": 4}, r"--layerskip-exit 4: give one from 1 to 3, the exits of this model"),
        ({"methods": EXACT, "layerskip_drafts": 0}, r"--layerskip-drafts 0: .*greater than or equal to 1"),
        ({"layerskip_drafts": 5}, r"--layerskip-drafts 5: none of --methods reads it; add layerskip.*, or drop it"),
        ({"methods": "vanilla,layerskip", "heads": None}, r"--heads is missing: model .* has no heads of its own"),
        ({"methods": "vanilla,speculative"}, r"--draft-model is missing: speculative drafts with one; give a smaller"),
        ({"methods": "vanilla,hf-assisted"}, r"--draft-model is missing: hf-assisted drafts with one"),
        (
            {"draft_model": "demo"},
            r"--draft-model demo: none of --methods reads it; add speculative or hf-assisted, or",
        ),
        (
            {"draft_revision": "main"},
            r"--draft-revision main: none of --methods reads it; add speculative or hf-assisted,",
        ),
        (
            {"methods": "vanilla,ngram,speculative", "draft_revision": "v1"},
            r"--draft-revision v1: there is no --draft-model; give one, or drop it",
        ),
        ({"draft_gamma": 0.5}, r"--draft-gamma 0.5: none of --methods reads it; add speculative, or drop it"),
        (
            {"methods": "vanilla,speculative", "heads": None, "draft_model": "no/such/folder"},
            r"--draft-model 'no/such/folder' cannot be loaded: there is no such folder",
        ),
        ({"methods": "vanilla,layer_skip"}, r"--methods .*did you mean layerskip\? Input should be 'vanilla'"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_runs(usage_error, tiny, tmp_path, changed, line):
    assert re.search(line, usage_error("eval", "--local", *tiny.flags(**changed), "--out", tmp_path / "run"))
    assert not list(tmp_path.glob("run/samples/*"))


def test_a_sweep_refuses_a_draft_model_of_other_tokens_before_its_first_cell(usage_error, tiny, tmp_path):
    folder = save_tiny_model(tmp_path / "draft", vocab_size=60)
    cells = {"one": {"methods": "vanilla,ngram"}, "two": {"methods": "vanilla,speculative", "draft_model": str(folder)}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"cells": cells}))
    flags = tiny.flags(heads=None, gamma=None)
    line = usage_error("sweep", "--local", *flags, "--config", file, "--out", tmp_path / "sweep")
    assert re.search(
        r"cell 'two': --draft-model '.*': its tokenizer is not that of --model .*: token 60 is nothing", line
    )
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_refuses_an_exit_without_a_head_before_its_first_cell(usage_error, tiny, tmp_path):
    flags = tiny.flags(methods=EXACT, layerskip_exit=3, gamma=None)
    line = usage_error("sweep", "--local", *flags, "--gammas", "0.1", "--out", tmp_path / "sweep")
    assert re.search(r"cell '.*': --layerskip-exit 3: there are no heads at \[3\]; those in '.*' are at 1,2", line)
    assert not (tmp_path / "sweep").exists()
