"""Weights as users have them: what is quantised, cut or of another configuration is refused in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model_folders import INDEX, PICKLE, POINTER, WEIGHTS, biased, edit, edit_weights, load, quantised, refusal

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


class Leaves:
    """Unpickled it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_weights_are_refused_unread_with_the_remedy(is_zip, folder, tmp_path):
    tensors = load_file(folder / WEIGHTS) | {"x": Leaves(tmp_path / "mark")}
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=is_zip)
    assert refusal(folder).startswith("its weights are pickled (pytorch_model.bin), and a pickle may hold code: give")
    assert not (tmp_path / "mark").exists()


def test_pickled_weights_beside_safetensors_are_not_looked_at(folder, tmp_path):
    expected = load(folder).model_hash
    torch.save({"x": Leaves(tmp_path / "mark")}, folder / "other.bin")
    torch.save({"x": Leaves(tmp_path / "mark")}, folder / PICKLE)
    load(folder)
    assert not (tmp_path / "mark").exists()
    (folder / "other.bin").unlink()
    (folder / PICKLE).unlink()
    assert load(folder).model_hash == expected


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


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
def test_weights_that_are_not_whole_are_named(content, why, folder):
    (folder / WEIGHTS).write_bytes(content((folder / WEIGHTS).read_bytes()))
    assert refusal(folder).startswith(f"{WEIGHTS} {why}")


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
    assert refusal(folder).startswith("it has no model.safetensors and no index")
