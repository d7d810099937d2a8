"""The recipe that rebuilds the demo."""

import runpy
import sys

import pytest

from adadecode.model.head_files import FACTS, load_heads, read_facts
from adadecode.model.load import load_model
from adadecode.recipes.build import (
    BLOCK_SETTINGS,
    HEAD_SETTINGS,
    HeadBuilder,
    join,
    mixed_prompts,
    others_than_kept,
    short_prompts,
)
from adadecode.recipes.corpus import Document
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model


def test_the_recipe_runs_as_its_docstring_says(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "adadecode.recipes.build")
    monkeypatch.setattr(sys, "argv", ["build", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("adadecode.recipes.build", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: python -m adadecode.recipes.build [OPTIONS]")
    assert all(flag in shown for flag in ("--gsm8k", "--work", "--install"))


def test_heads_are_trained_once_on_the_models_own_outputs(tmp_path, capsys):
    save_tiny_model(tmp_path / "model")
    builder = HeadBuilder(tmp_path, threads=1, seed=0)
    texts = ("w10 w20 w30", "w11 w40", " ".join(["w5"] * 257))
    prompts = short_prompts(builder.tokenizer, [Document(text, "") for text in texts])
    assert [len(prompt) for prompt in prompts] == [3, 2], "the longest ones are left out"
    out = tmp_path / "heads" / "math"
    builder.train(out, "math", prompts, (1, 2), "transform", HEAD_SETTINGS)
    facts = read_facts(out)
    assert facts is not None
    assert (facts.kind, facts.exits, facts.training["num_prompts"]) == ("transform", (1, 2), 2)
    written, _ = (out / FACTS).stat().st_mtime_ns, capsys.readouterr()
    builder.train(out, "math", prompts, (1, 2), "transform", HEAD_SETTINGS)
    assert ((out / FACTS).stat().st_mtime_ns, capsys.readouterr().out) == (written, "")


def test_mixed_prompts_are_as_many_as_for_math_and_come_in_turns():
    prompts = {"math": [[1], [2], [3], [4]], "code": [[10], [20], [30]]}
    assert mixed_prompts(prompts) == [[1], [10], [2], [20]]
    assert mixed_prompts({**prompts, "code": [[10]]}) == [[1], [2], [10], [3]]


def test_no_prompt_that_is_kept_for_tuning_is_trained_on():
    assert others_than_kept([[1], [2], [1], [3], [4], [3]], 2) == [[1], [2]]


def test_the_papers_heads_and_blocks_become_one_set(tmp_path):
    save_tiny_model(tmp_path / "model")
    builder = HeadBuilder(tmp_path, threads=1, seed=0)
    prompts = short_prompts(builder.tokenizer, [Document("w10 w20 w30", ""), Document("w11 w40", "")])
    transforms, blocks, both = (tmp_path / name for name in ("transforms", "blocks", "both"))
    builder.train(transforms, "math", prompts, (2,), "transform", HEAD_SETTINGS)
    builder.train(blocks, "math", prompts, (1,), "block", BLOCK_SETTINGS | {"epochs": 1, "shortlist_len": 24})
    join(transforms, blocks, both)
    model, _ = load_model(ModelSettings(model=str(tmp_path / "model")))
    full, shortlist = load_heads(both, model), load_heads(both, model, "shortlist")
    assert (full.exits, shortlist.exits) == ((2,), (1, 2)), "a block has no other form"
    of_block, of_transform = (test.head for test in shortlist.tests)
    assert of_transform.block is None
    assert of_block.block is not None
    assert of_block.token_ids is not None
    assert of_transform.token_ids is not None
    assert of_block.token_ids.tolist() == of_transform.token_ids.tolist(), "one shortlist for all"
    facts = read_facts(both)
    assert facts is not None
    assert (facts.exits, facts.training["blocks"]["settings"]["loss"]) == ((1, 2), "argmax")
    assert (facts.exits_of("full"), facts.exits_of("shortlist")) == ((2,), (1, 2))
