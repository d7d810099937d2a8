"""Where a model is: a folder, a name on the hub or in its cache; what is at none of them is refused in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from adadecode.errors import UsageError
from adadecode.model.files import ModelFiles
from tests.model_folders import WEIGHTS, biased, edit, edit_weights, loaded_elsewhere, quantised, refusal


@pytest.mark.parametrize("name", ["./m/nope", "/abs/nope", "m/nope/deep", "~/nope", "nope/", "https://hub/a/b", "a b"])
def test_what_can_be_no_hub_id_is_a_missing_folder_and_the_hub_is_not_asked(name, monkeypatch):
    monkeypatch.setattr("adadecode.model.files.HfApi", None)  # asking would be a TypeError
    assert refusal(name).startswith(
        "there is no such folder; give `demo`, a folder with a transformers model, a GGUF file, or a hub"
    )


def test_a_file_is_no_folder(folder):
    assert refusal(folder / WEIGHTS).startswith("it is a file and no .gguf; give the folder with")


def test_a_name_that_is_neither_folder_nor_on_the_hub_is_told_both(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = refusal("m/nope")
    assert line.startswith(
        "there is no such folder, and the hub cannot be reached to look for such a model (ConnectError"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal("m/nope").startswith(
        "there is no such folder, nor such a model in the hub's cache, and HF_HUB_OFFLINE is set; give `demo`"
    )


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_hub_that_gives_no_answer_for_a_file_is_said_and_the_file_does_not_count_as_absent(file, monkeypatch):
    """A worker that met a busy hub would else decode to the ends of config.json, and the others to those of the model."""

    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("An error happened while trying to locate the file") from cause

    monkeypatch.setattr("adadecode.model.files.hf_hub_download", download)
    files = ModelFiles("m/busy", "m/busy")
    cause: Exception = ConnectionError("503 Service Unavailable")
    with pytest.raises(UsageError, match=rf"the hub could not be asked for its {file} \(ConnectionError: 503 Service"):
        files.json(file)
    cause = OfflineModeIsEnabled("offline")
    assert files.json(file) is None
    cause = ConnectionError("503 Service Unavailable")
    monkeypatch.setattr("adadecode.model.files.try_to_load_from_cache", lambda *_, **__: object())
    assert files.json(file) is None, "the cache remembers that the hub has none"


def test_a_model_in_the_hubs_cache_is_taken_and_judged_as_a_folder_is(saved, tmp_path):
    """In a process of its own: where the cache is, is read when the hub's client is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    changes: dict[str, dict[str, Any]] = {
        "odd": {},
        "lost": {"num_hidden_layers": 1},
        "small": {"vocab_size": 90},
        "packed": {"quantization_config": {"quant_method": "awq"}},
    }
    for name, changed in changes.items():
        repo = tmp_path / f"models--org--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        snapshot = Path(shutil.copytree(saved, repo / "snapshots" / commit))
        edit(snapshot, "config.json", **changed)
        edit_weights(snapshot, biased)
    names = [f"org/{name}" for name in changes]
    odd, lost, small, packed, *_ = loaded_elsewhere(*names, HF_HUB_CACHE=str(tmp_path))
    assert odd.startswith(
        "in the checkpoint and in no layer that config.json describes: model.layers.0.self_attn.q_proj"
    )
    assert lost.startswith("--model 'org/lost' cannot be loaded: the checkpoint has 2 layers, config.json's")
    assert small.startswith("--model 'org/small' cannot be loaded: ")
    assert "is [97, 32] in the checkpoint and [90, 32] by config.json" in small
    assert packed == f"--model 'org/packed' cannot be loaded: {quantised('awq')}"
