"""Heads and policies that ship under names."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from adadecode.errors import UsageError
from adadecode.model.head_files import TENSORS, read_facts
from adadecode.model.ngram_store import STORE
from adadecode.published import names, published
from adadecode.settings import EvalConfig, read_policy
from adadecode.tasks.heads import heads_folder

LARGEST_HEADS = 16_000_000  # bytes, of all heads of one model
SMOLLM2 = "8ef8545cdab8304a"


def test_what_is_published_for_smollm2():
    assert names() == ("smollm2-135m-code", "smollm2-135m-math")


@pytest.mark.parametrize("name", names())
def test_published_heads_are_whole_and_their_policy_is_for_them(name):
    folder = published(name)
    assert folder is not None
    facts = read_facts(folder)
    assert facts is not None
    assert (facts.kind, facts.base_model_hash) == ("block", SMOLLM2)
    exits = {int(tensor.split(".")[-1]) for tensor in load_file(folder / TENSORS) if tensor.startswith("block.")}
    assert exits == set(facts.exits)
    policy = read_policy(name)
    assert set(policy["exits"]) <= exits
    assert policy["head"] == "shortlist"
    assert (folder / STORE).is_file()


def test_all_heads_of_one_model_are_small():
    folders = [folder for name in names() if (folder := published(name)) is not None]
    assert sum((folder / TENSORS).stat().st_size for folder in folders) < LARGEST_HEADS


def test_a_name_stands_for_its_heads_and_a_folder_of_that_name_for_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = EvalConfig(model="some/model", heads="smollm2-135m-math")
    assert heads_folder(config, "math") == published("smollm2-135m-math")
    (tmp_path / "smollm2-135m-math").mkdir()
    assert heads_folder(config, "math") == Path("smollm2-135m-math")


def test_a_policy_that_is_not_published_is_refused_with_the_names():
    with pytest.raises(
        UsageError, match=r"--policy 'smollm2': give paper, .* published: smollm2-135m-code, smollm2-135m-math"
    ):
        read_policy("smollm2")
