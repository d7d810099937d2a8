"""A model that cannot be used is the same one line in every command; one that is odd is said once, and stored."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adadecode.errors import NotFiniteError
from adadecode.runs.folder import read_run
from adadecode.settings import TrainConfig
from ray_jobs.training import ModelActor, TrainTask, is_refusal

BROKEN = "model.layers.2.mlp.down_proj.weight"
COMMANDS = {
    "generate": ["w5"],
    "eval": ["--local"],
    "sweep": ["--local"],
    "bench": [],
    "train-heads": [],
    "tune": [],
}


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny.model, tmp_path / "model"))


def command_line(tiny, command: str, model: Path, out: Path) -> list[object]:
    unused = {"generate": ("task", "data_file", "shard_size"), "bench": ("shard_size",), "sweep": ("gamma",)}
    unused["train-heads"] = unused["tune"] = ("heads", "gamma", "shard_size")
    dropped = dict.fromkeys(unused.get(command, ()))
    if command == "tune":
        del dropped["heads"]
    to_folder = [] if command in ("generate", "bench") else ["--out", out]
    return [command, *COMMANDS[command], *tiny.flags(model=model, **dropped), *to_folder]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_quantised_model_is_the_same_line_in_every_command(command, tiny, usage_error, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert usage_error(*command_line(tiny, command, folder, tmp_path / "out")) == (
        f"adadecode: --model {str(folder)!r} cannot be loaded: its weights are quantised (gptq): give the full-precision "
        "checkpoint"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_folder_is_the_same_line_in_every_command(command, tiny, usage_error, tmp_path):
    missing = tmp_path / "none"
    line = usage_error(*command_line(tiny, command, missing, tmp_path / "out"))
    assert line.startswith(
        f"adadecode: --model {str(missing)!r} cannot be loaded: there is no such folder; give `demo`"
    )


def test_heads_are_not_trained_on_the_outputs_of_a_model_that_gives_no_finite_logits(
    tiny, usage_error, folder, tmp_path
):
    break_a_weight(folder)
    assert usage_error(*command_line(tiny, "train-heads", folder, tmp_path / "out")) == (
        f"adadecode: logits are not finite in float32, whatever the prompt: {BROKEN} holds NaN or infinity; check the "
        "checkpoint"
    )
    assert not (tmp_path / "out").exists()


def test_a_worker_that_makes_outputs_refuses_a_model_that_gives_no_finite_logits(folder, tmp_path):
    break_a_weight(folder)
    config = TrainConfig(model=str(folder), task="jsonl", dtype="float32", threads=1)
    with pytest.raises(NotFiniteError, match=f"{BROKEN} holds NaN") as caught:
        ModelActor("w0", TrainTask(config, tmp_path / "out", tmp_path / "out")).load()
    assert is_refusal(caught.value)


def break_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[BROKEN][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_odd_about_a_model_is_said_once_stored_and_reported(tiny, cli, folder, tmp_path):
    tensors = load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    note = (
        "in the checkpoint and in no layer that config.json describes: model.layers.0.self_attn.q_proj.bias; "
        "its outputs may be another model's"
    )
    done = cli("eval", "--local", *tiny.flags(model=folder, limit=1, max_new_tokens=2), "--out", tmp_path / "run")
    assert (done.exit_code, done.stderr.count(note)) == (0, 1), done.stderr
    assert f"adadecode: --model {str(folder)!r}: {note}" in done.stderr.splitlines()
    assert [worker["model_notes"] for worker in read_run(tmp_path / "run")["workers"]] == [[note]]
    assert f"model: {note}" in cli("report", tmp_path / "run").stdout.splitlines()
    done = cli(*command_line(tiny, "generate", folder, tmp_path))
    assert (done.exit_code, done.stderr.count(note)) == (0, 1), done.stderr


def no_room(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 1 GiB")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_does_not_fit_the_device_is_the_same_line_in_every_command(
    command, tiny, cli, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.PreTrainedModel.to", no_room)
    result = cli(*command_line(tiny, command, tiny.model, tmp_path / "out"))
    assert result.exit_code == 1
    assert (
        "adadecode: out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); try a smaller --dtype such as "
        "bfloat16, more --gpus-per-worker, --device cpu, or end what else is on this device"
    ) in result.stderr.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_memory_that_runs_out_in_decoding_is_one_line_with_what_helps(command, tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("adadecode.model.decoder.DecoderModel.new_step", no_room)
    result = cli(*command_line(tiny, command, tiny.model, tmp_path / "out"))
    start = "adadecode: out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); try "
    assert result.exit_code == 1
    assert any(line.startswith(start) and "fewer --max-new-tokens" in line for line in result.stderr.splitlines())
