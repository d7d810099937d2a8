"""Configuration, tokenizer, code of a folder's own, ends of a sequence: what cannot be is refused or noted in one line."""

import json
import shutil
from pathlib import Path

import pytest

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.errors import UnknownTokenError, UsageError
from adadecode.methods import METHODS
from adadecode.model.families import FAMILIES
from adadecode.model.load import load_model, load_tokenizer
from adadecode.settings import ModelSettings
from tests.model_folders import POINTER, edit, load, loaded_elsewhere, refusal

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
        f"model type 'mymodel': its layers are not known to the engine; supported are {', '.join(FAMILIES)}",
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
