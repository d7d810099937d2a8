"""Model folders as users have them: what is not the model it seems to be is refused in one line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.errors import UnknownTokenError, UsageError
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.model.files import ModelFiles
from adadecode.model.load import load_model, load_tokenizer
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("saved") / "model", num_layers=2, eos_token_id=2)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the saved model, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(folder: Path, file: str, **changed: Any) -> None:
    """Sets keys of a JSON file; `...` takes one out."""
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    content |= changed
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path | str) -> DecoderModel:
    return load_model(ModelSettings(model=str(folder), dtype="float32", kernels="eager"))[0]


def refusal(folder: Path | str) -> str:
    """The reason with which the model in `folder` is refused."""
    with pytest.raises(UsageError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    assert caught.value.exit_code == 2
    start = f"--model {str(folder)!r} cannot be loaded: "
    assert message.startswith(start)
    return message.removeprefix(start)


def quantised(how: str) -> str:
    return f"its weights are quantised ({how}): give the full-precision checkpoint"


# quantised checkpoints


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "exl2", "bits": 4.0}, "exl2"),
        ({"quant_method": "one\nof\x1b tomorrow"}, "one\\nof\\u001b tomorrow"),
        ({}, "quantization_config"),
        ("gptq", "quantization_config"),
    ],
)
def test_a_quantised_checkpoint_is_refused_whatever_quantised_it(config, how, folder):
    edit(folder, "config.json", quantization_config=config)
    assert refusal(folder) == quantised(how)


def test_a_configuration_that_says_null_is_not_quantised(folder):
    edit(folder, "config.json", quantization_config=None)
    assert load(folder).num_layers == 2


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_other_keys_of_quantised_checkpoints_are_known(key, folder):
    edit(folder, "config.json", **{key: {"bits": 4}})
    assert refusal(folder) == quantised(key)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_beside_the_configuration_can_say_it_too(file, folder):
    (folder / file).write_text("{}")
    assert refusal(folder) == quantised(file)


@pytest.mark.parametrize(
    ("suffix", "how"), [("qweight", "gptq or awq"), ("weight_packed", "compressed-tensors"), ("SCB", "bitsandbytes")]
)
def test_packed_tensors_alone_give_it_away(suffix, how, folder):
    packed = {f"model.layers.0.mlp.up_proj.{suffix}": torch.zeros(4, 4, dtype=torch.int32)}
    edit_weights(folder, lambda tensors: tensors | packed)
    assert refusal(folder) == quantised(how)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_eight_bits_without_their_scales_are_refused(dtype, folder):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors | {name: tensors[name].to(dtype)})
    assert name in refusal(folder)


# tensors that are not those of the configuration


def test_another_shape_is_named_with_both(folder):
    edit(folder, "config.json", intermediate_size=64)
    assert refusal(folder) == (
        "model.layers.0.mlp.gate_proj.weight is [48, 32] in the checkpoint and [64, 32] by config.json; 5 more differ: "
        "they are of different models"
    )
    edit(folder, "config.json", intermediate_size=48, vocab_size=87)
    assert "model.embed_tokens.weight is [97, 32] in the checkpoint and [87, 32] by config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("num_layers", "why"), [(1, "the checkpoint has 2 layers, config.json's num_hidden_layers is 1")]
)
def test_layers_that_are_there_and_not_asked_for_are_refused(num_layers, why, folder):
    """The first half of a model decodes fluently and is another model."""
    edit(folder, "config.json", num_hidden_layers=num_layers, layer_types=...)
    assert why in refusal(folder)


def test_layers_that_are_asked_for_and_not_there_are_refused(folder):
    edit(folder, "config.json", num_hidden_layers=3)
    assert "the checkpoint lacks model.layers.2.input_layernorm.weight" in refusal(folder)


def biased(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(32) for i in range(2)}


def test_other_tensors_without_a_place_are_noted_once_and_transformers_says_nothing(folder, caplog, capfd):
    edit_weights(folder, biased)
    model = load(folder)
    assert model.notes == (
        "in the checkpoint and in no layer that config.json describes: model.layers.0.self_attn.q_proj.bias, "
        "model.layers.1.self_attn.q_proj.bias; its outputs may be another model's",
    )
    assert caplog.messages == [f"--model {str(folder)!r}: {model.notes[0]}"]
    assert "UNEXPECTED" not in capfd.readouterr().err


def test_a_model_as_it_was_saved_has_no_notes(folder, caplog):
    assert load(folder).notes == ()
    assert caplog.messages == []


# files with weights


def to_pickle(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / PICKLE)
    return tensors


def test_pickled_weights_are_taken(folder):
    expected = load(folder).model_hash
    to_pickle(folder)
    assert load(folder).model_hash == expected


class Leaves:
    """Unpickled it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_named_and_never_run(is_zip, folder, tmp_path):
    tensors = to_pickle(folder) | {"x": Leaves(tmp_path / "mark")}
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=is_zip)
    assert refusal(folder) == "pytorch_model.bin names code (exec), which is never run: give safetensors"
    assert not (tmp_path / "mark").exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("file", [WEIGHTS, PICKLE])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda whole: POINTER, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"),
        (cut, "is damaged or cut"),
        (lambda whole: b"", "is empty: download it again"),
        (lambda whole: b"<html>404</html>", "is damaged or cut"),
    ],
    ids=["pointer", "cut", "empty", "page"],
)
def test_weights_that_are_not_whole_are_named_without_advice_to_run_them(content, why, file, folder):
    if file == PICKLE:
        to_pickle(folder)
    (folder / file).write_bytes(content((folder / file).read_bytes()))
    line = refusal(folder)
    assert line.startswith(f"{file} {why}")
    assert "weights_only" not in line


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"a": 1}, {"model": {"x": torch.zeros(2)}}])
def test_a_pickle_of_something_else_is_refused(content, folder):
    to_pickle(folder)
    torch.save(content, folder / PICKLE)
    assert "pytorch_model.bin is damaged or cut" in refusal(folder)


def test_a_pickle_that_torch_never_wrote_is_refused(folder):
    to_pickle(folder)
    (folder / PICKLE).write_bytes(pickle.dumps({"x": 1}, protocol=2))
    assert refusal(folder).startswith("pytorch_model.bin ")


@pytest.fixture
def sharded(folder) -> Path:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {"a.safetensors": sorted(tensors)[:5], "b.safetensors": sorted(tensors)[5:]}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in shards.items() for name in names}
    edit(folder, INDEX, metadata={"total_size": 1}, weight_map=weight_map)
    return folder


def test_a_sharded_checkpoint_is_the_same_model(saved, sharded):
    assert load(sharded).model_hash == load(saved).model_hash


def test_an_index_that_names_files_which_are_missing_or_cut_says_which(sharded):
    (sharded / "b.safetensors").write_bytes(cut((sharded / "b.safetensors").read_bytes()))
    assert refusal(sharded).startswith("b.safetensors is damaged or cut")
    (sharded / "b.safetensors").unlink()
    assert refusal(sharded) == f"{INDEX} names b.safetensors, missing here: download what is missing"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"weight_map": ...}, "lacks its `weight_map` or `metadata`"),
        ({"weight_map": []}, "lacks its `weight_map` or `metadata`"),
        ({"metadata": ...}, "lacks its `weight_map` or `metadata`"),
        ({"weight_map": {"x": 1}}, "names 1, which is no file beside it"),
        ({"weight_map": {"x": ["a"]}}, 'names ["a"], which is no file beside it'),
        ({"weight_map": {"x": "../a.safetensors"}}, 'names "../a.safetensors", which is no file beside it'),
    ],
)
def test_a_broken_index_is_named(changed, why, sharded):
    edit(sharded, INDEX, **changed)
    assert refusal(sharded).startswith(f"{INDEX} {why}")


def test_a_cut_index_is_named(sharded):
    (sharded / INDEX).write_bytes(cut((sharded / INDEX).read_bytes()))
    assert refusal(sharded).startswith(f"{INDEX} is not JSON (JSONDecodeError: ")


def test_a_folder_without_weights_says_which_files_it_lacks(folder):
    (folder / WEIGHTS).unlink()
    assert refusal(folder).startswith("it has neither model.safetensors nor pytorch_model.bin")


# configurations


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"num_hidden_layers": "8"}, 'num_hidden_layers "8": Input should be a valid integer'),
        ({"num_hidden_layers": None}, "num_hidden_layers null: Input should be a valid integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0: Input should be greater than or equal to 1"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 1000000000000: Input should be less than or equal to 1024"),
        ({"vocab_size": 10**12}, "vocab_size 1000000000000: Input should be less than or equal to 16777216"),
        ({"vocab_size": 97.0}, "vocab_size 97.0: Input should be a valid integer"),
        ({"vocab_size": True}, "vocab_size true: Input should be a valid integer"),
        ({"hidden_size": -32}, "hidden_size -32: Input should be greater than or equal to 1"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings 1000000000: Input should be less than or equal"),
        ({"intermediate_size": []}, "intermediate_size []: Input should be a valid integer"),
        ({"head_dim": 0}, "head_dim 0: Input should be greater than or equal to 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps NaN: "),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps "1e-5": Input should be a valid number'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings "no": Input should be a valid boolean'),
        ({"eos_token_id": "</s>"}, 'eos_token_id "</s>": Input should be a valid integer'),
        ({"eos_token_id": [2, None]}, "eos_token_id "),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta -1.0: Input should be greater than 0"),
        ({"rope_parameters": "linear"}, 'rope_parameters "linear": '),
        (
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            'rope_scaling.factor "2": Input should be a valid number',
        ),
        ({"layer_types": "full"}, 'layer_types "full": Input should be a valid list'),
        ({"model_type": ...}, "it has no model_type"),
        ({"model_type": 5}, "model_type 5: Input should be a valid string"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config makes layers differ"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights points to other weights"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files points to another configuration"),
    ],
    ids=str,
)
def test_a_value_that_is_none_for_its_field_is_refused_with_the_field(changed, why, folder):
    edit(folder, "config.json", **changed)
    assert refusal(folder).startswith(f"config.json: {why}")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_size": 33}, ["its configuration", "33", "4"]),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 10000.0}}, ["spiral"]),
        ({"dtype": "no_dtype"}, ["its configuration", "no_dtype"]),
        ({"pad_token_id": 500}, ["its weights", "num_embeddings"]),
    ],
    ids=str,
)
def test_what_transformers_itself_refuses_is_one_line_too(changed, words, folder):
    edit(folder, "config.json", **changed)
    line = refusal(folder)
    assert [word for word in words if word not in line] == [], line


def test_as_many_layer_types_as_layers_are_wanted(folder):
    edit(folder, "config.json", model_type="qwen2", layer_types=["full_attention"] * 5)
    assert "layer_types" in refusal(folder)


@pytest.mark.parametrize("content", [b'{"model_type": "llama", ', b"[]", b"\xff\xfe", b"", b"[" * 100_000, POINTER])
def test_a_file_of_settings_that_is_no_object_is_named(content, folder):
    for file in ("tokenizer_config.json", "config.json"):
        (folder / file).write_bytes(content)
        assert refusal(folder).startswith(f"{file} ")


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert refusal(folder) == "it is an adapter (adapter_config.json): merge it into its base model and give that"


@pytest.mark.parametrize("kernels", ["eager", "auto"])
def test_heads_of_which_a_part_is_turned_are_refused(kernels, folder):
    edit(folder, "config.json", head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_theta=...)
    assert load(folder).num_layers == 2
    edit(
        folder, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    )
    assert "rope_parameters.partial_rotary_factor 0.5" in refusal(folder)


# tokenizers


def test_a_tokenizer_of_another_version_is_one_line(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": [{"a": 1}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(folder).startswith(
        "its tokenizer is not understood; was it saved by another version? (Exception: data did not match"
    )


@pytest.mark.parametrize("content", [b"{", POINTER, b""])
def test_a_damaged_tokenizer_is_named(content, folder):
    (folder / "tokenizer.json").write_bytes(content)
    assert refusal(folder).startswith("tokenizer.json ")


def test_a_missing_tokenizer_is_named(folder):
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == "it has no tokenizer, such as tokenizer.json; download it"


def test_a_chat_template_that_is_no_text_is_refused(folder):
    edit(folder, "tokenizer_config.json", chat_template=5)
    assert "chat_template" in refusal(folder)


def test_what_reads_the_tokenizer_alone_refuses_the_same(folder):
    (folder / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(UsageError, match=r"tokenizer\.json is a Git LFS pointer"):
        load_tokenizer(str(folder))


def test_a_token_of_a_tokenizer_larger_than_the_model_is_one_line(folder):
    """On a GPU the embedding of one would end the process."""
    edit(folder, "tokenizer_config.json", eos_token="<beyond>")
    model, tokenizer = load_model(ModelSettings(model=str(folder), dtype="float32", kernels="eager"))
    prompt_ids = tokenizer("w5 <beyond>").input_ids
    assert prompt_ids == [5, 97]
    for method in ("vanilla", "transformers"):
        with pytest.raises(UnknownTokenError, match="the prompt has token ids 5 to 97, the model knows 0 to 96"):
            decode(model, METHODS[method], Request(prompt_ids, 3))
    assert decode(model, METHODS["vanilla"], Request([0, 96], 3)).generation.output_token_ids


# code of the folder's own


LOAD = """
import logging, sys
from adadecode.errors import UsageError
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
logging.disable()
for name in sys.argv[1:]:
    try:
        print(*load_model(ModelSettings(model=name, dtype="float32", kernels="eager"))[0].notes)
    except UsageError as error:
        print(error)
print("unread:", *sys.stdin.read().split())
"""


def loaded_elsewhere(*models: Path | str, **environment: str) -> list[str]:
    """The notes on each of `models`, or why it is refused, by a process that has `y` on stdin; at last what it left."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, models)],
        input="y",
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_code_of_its_own_is_refused_and_nobody_is_asked(saved, tmp_path):
    """A `y` on stdin stays unread, and the file that the code would make is not there."""
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", "code.T"]}
    folders: list[Path] = []
    for file in ("config.json", "tokenizer_config.json"):
        for model_type in ("llama", "mymodel"):
            folder = Path(shutil.copytree(saved, tmp_path / f"{model_type}-{file}"))
            edit(folder, "config.json", model_type=model_type)
            edit(folder, file, auto_map=code)
            (folder / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
            folders.append(folder)
    *lines, last = loaded_elsewhere(*folders)
    assert last == "unread: y"
    refused = "auto_map names custom code, which is never run; give a model that transformers itself knows"
    assert lines == [
        f"--model {str(folders[0])!r} cannot be loaded: config.json: {refused}",
        f"--model {str(folders[1])!r} cannot be loaded: config.json: {refused}",
        f"--model {str(folders[2])!r} cannot be loaded: tokenizer_config.json: {refused}",
        "model type 'mymodel': its layers are not known to the engine; supported are llama, mistral, qwen2, qwen3",
    ]
    assert not (tmp_path / "mark").exists()


def test_an_attention_that_a_configuration_names_is_not_fetched(folder):
    expected = load(folder).lm.config._attn_implementation
    edit(folder, "config.json", attn_implementation="someone/their-kernels")
    assert load(folder).lm.config._attn_implementation == expected == "sdpa"


# what ends a sequence


@pytest.mark.parametrize(
    ("generation", "config", "expected", "noted"),
    [
        ([2, 5], 9, {2, 5}, None),
        (5, 9, {5}, None),
        (None, [9, 3], {9, 3}, None),
        (0, 9, {0}, None),
        (None, None, set(), None),
        ([], 9, {9}, None),
        ([2, None], 9, {2}, "generation_config.json: of eos_token_id [2, null] only token ids from 0 to 96 are taken"),
        ([2, -1, 97, True, "3", 1.0], 9, {2}, "generation_config.json: of eos_token_id [2, -1, 97, true"),
        ("</s>", 9, {9}, 'generation_config.json: of eos_token_id "</s>" only token ids'),
        ({"a": 2}, [9, 3], {9, 3}, "generation_config.json: of eos_token_id "),
        (False, 9, {9}, "generation_config.json: of eos_token_id false only"),
        (None, [2, -1], {2}, "config.json: of eos_token_id [2, -1] only"),
        (-1, 97, set(), "generation_config.json: of eos_token_id -1 only"),
    ],
    ids=str,
)
def test_ids_that_end_a_sequence_are_token_ids(generation, config, expected, noted, folder):
    edit(folder, "config.json", eos_token_id=config)
    edit(folder, "generation_config.json", eos_token_id=generation)
    model = load(folder)
    assert model.eos_token_ids == expected
    assert bool(model.notes) == (noted is not None)
    assert noted is None or model.notes[0].startswith(noted)
    for method in ("vanilla", "transformers"):
        assert decode(model, METHODS[method], Request([5, 6], 3)).generation.output_token_ids


def test_a_broken_file_of_generation_settings_is_noted(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 5,}')
    model = load(folder)
    assert model.eos_token_ids == {2}
    (note,) = model.notes
    assert note.startswith("generation_config.json is not JSON (JSONDecodeError: ")
    assert note.endswith("; its eos_token_id is lost, that of config.json holds")


@pytest.mark.parametrize("odd", [{"temperature": "hot"}, {"max_length": -1}, {"do_sample": 3}, {"num_beams": 0}])
def test_generation_settings_that_are_not_used_may_be_anything(odd, folder):
    edit(folder, "generation_config.json", eos_token_id=5, **odd)
    model = load(folder)
    assert (model.eos_token_ids, model.notes) == ({5}, ())


# where the model is


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
