"""A model in one GGUF file decodes as the model it was made from; what cannot be unpacked is one line."""

import builtins
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adadecode.cli.main import main
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.errors import UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model, load_tokenizer
from adadecode.settings import ModelSettings
from tests.folders import write_prompts
from tests.gguf_files import TOKENS, tiny_gguf_lm, write_gguf


def load(path: Path | str, dtype: str = "float32") -> DecoderModel:
    return load_model(ModelSettings(model=str(path), dtype=dtype, kernels="eager"))[0]


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--model {str(path)!r} cannot be loaded: ")
    return message.partition("cannot be loaded: ")[2]


def output(model: DecoderModel) -> Any:
    return generate(model, Request([5, 6, 7], 12, record_logits=True), Policy())


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("llama", {"tied": True}), ("llama", {"num_key_value_heads": 4}), ("qwen3", {"head_dim": 128})],
)
def test_a_file_decodes_as_the_model_it_was_made_from(tmp_path, family, settings):
    lm = tiny_gguf_lm(family, **settings)
    model = load(write_gguf(tmp_path / "tiny.gguf", lm))
    assert (model.lm.config.eos_token_id, model.notes) == ([96], ())
    found, expected = output(model), output(DecoderModel(lm, "eager"))
    assert found.generation.output_token_ids == expected.generation.output_token_ids
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("packed", ["Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_weights_are_unpacked_to_the_dtype_that_is_asked_for(tmp_path, packed, dtype):
    lm = tiny_gguf_lm(intermediate_size=64)
    kind = gguf.GGMLQuantizationType[packed]
    model = load(write_gguf(tmp_path / "tiny.gguf", lm, packed=kind), dtype)
    embedding = model.lm.get_input_embeddings().weight
    assert {parameter.dtype for parameter in model.lm.parameters()} == {getattr(torch, dtype)}
    original = lm.get_input_embeddings().weight.detach().numpy()
    expected = torch.tensor(gguf.dequantize(gguf.quantize(original, kind), kind)).to(getattr(torch, dtype))
    assert torch.equal(embedding, expected)


def test_the_tokenizer_is_the_files(tmp_path):
    config, tokenizer = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())))
    assert config.vocab_size == len(TOKENS)
    assert tokenizer.decode(tokenizer.encode("ab c")) == "ab c"
    assert tokenizer.eos_token == "<end>"


def test_nothing_is_said_while_a_file_is_unpacked(tmp_path, capfd):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())
    capfd.readouterr()
    load(path)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_named_without_a_folder_is_found(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())
    monkeypatch.chdir(tmp_path)
    assert load("tiny.gguf").num_layers == 2


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"kind": "gemma2"}, 'its architecture "gemma2" is none that the engine decodes from a GGUF file'),
        ({"kind": "llama", "num_parts": 3}, "it is one of 3 parts of a split file: join its parts with"),
        ({"scaling": "linear"}, "its rotary embeddings are scaled, which is lost in unpacking"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "its rotary embeddings are scaled"),
        ({"tokens": []}, "it has no tokenizer; give a file that has one"),
    ],
    ids=["architecture", "split", "scaled", "frequencies", "no tokenizer"],
)
def test_a_file_that_would_be_another_model_is_refused(tmp_path, odd, why):
    assert refusal(write_gguf(tmp_path / "odd.gguf", tiny_gguf_lm(), **odd)).startswith(why)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "it is a Git LFS pointer"),
        (b"GGUF", "it is no GGUF file that can be read ("),
        (b"GGUF\x09\x00\x00\x00" + bytes(64), "it is no GGUF file that can be read (ValueError: Sorry, file appears"),
        (b"PK\x03\x04" + bytes(64), "it is no GGUF file that can be read ("),
    ],
    ids=["empty", "pointer", "cut", "version", "other"],
)
def test_a_file_that_is_none_says_what_it_is(tmp_path, content, why):
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    assert refusal(path).startswith(why)


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())
    whole = path.read_bytes()
    for share in (0.01, 0.05, 0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "download it again" in refusal(path), share


def test_weights_of_other_shapes_and_missing_ones_are_named(tmp_path):
    lm = tiny_gguf_lm()
    lm.model.norm.weight = torch.nn.Parameter(torch.ones(7))
    assert "model.norm.weight is [7]" in refusal(write_gguf(tmp_path / "odd.gguf", lm))
    del lm.model.norm
    assert "the checkpoint lacks model.norm.weight" in refusal(write_gguf(tmp_path / "odd.gguf", lm))


def test_without_the_packages_the_line_says_how_to_get_them(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert "pip install 'adadecode[gguf]'" in refusal(path)


def test_an_evaluation_stores_a_hash_of_the_file(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_gguf_lm())
    prompts = write_prompts(tmp_path / "prompts.jsonl", ["ab", "ca"])
    flags = ["--dtype", "float32", "--kernels", "eager", "--max-new-tokens", "4", "--methods", "vanilla,vanilla-w1"]
    command = ["eval", "--local", "--model", str(path), "--task", "jsonl", "--data-file", str(prompts), *flags]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    hashes = json.loads((tmp_path / "run" / "run.json").read_text())["provenance"]["hashes"]
    assert len(hashes["model_file"]) == 16
    write_gguf(path, tiny_gguf_lm(seed=1))
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "changed" in result.output
