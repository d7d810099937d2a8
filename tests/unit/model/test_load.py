"""Loading a model by its name, and what cannot be loaded in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
)

from adadecode.engine.generate import Request, generate
from adadecode.errors import UsageError
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model
from tests.models import FAMILIES, KERNELS, tiny_lm

DTYPES = ("float32", "bfloat16", "float16")


def ids_of(decoded) -> tuple[int, ...]:
    return decoded.generation.output_token_ids


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_loads_in_every_dtype_with_its_weights(dtype, tied, tmp_path):
    lm = tiny_lm(tied=tied).to(getattr(torch, dtype))
    save_tiny_model(tmp_path, tied=tied)
    model, tokenizer = load_model(ModelSettings(model=str(tmp_path), dtype=dtype))
    assert model.dtype == getattr(torch, dtype)
    assert (model.num_layers, model.width, model.vocab_size, model.context_len) == (4, 32, 97, 1024)
    assert (model.lm.lm_head.weight is model.lm.model.embed_tokens.weight) == tied
    expected = dict(lm.named_parameters())
    for name, parameter in model.lm.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
    assert tokenizer("w5 w6 nonsense").input_ids == [5, 6, 0]
    assert len(tokenizer) == model.vocab_size


@pytest.mark.parametrize("kernels", ["auto", *KERNELS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_from_a_folder_and_decodes_as_transformers_does(family, kernels, tmp_path):
    model, _ = load_model(ModelSettings(model=str(save_tiny_model(tmp_path, family)), dtype="float32", kernels=kernels))
    lm = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = torch.tensor([[5, 6, 7]])
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    oracle = lm.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert ids_of(generate(model, Request([5, 6, 7], 20))) == tuple(oracle[0, 3:].tolist())


def _damage(folder: Path, file: str, content: bytes | None) -> None:
    """Replaces `file` in `folder`, or removes it when `content` is None."""
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b'{"model_type": "llama"'),
        ("model.safetensors", None),
        ("model.safetensors", b"\x08\0\0\0"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_folder_with_a_missing_or_damaged_file_is_one_line(file, content, tmp_path):
    save_tiny_model(tmp_path)
    _damage(tmp_path, file, content)
    if file == "tokenizer.json" and content is None:
        (tmp_path / "tokenizer_config.json").unlink()
    assert_cannot_be_loaded(str(tmp_path))


def test_a_checkpoint_that_lacks_a_weight_is_one_line(tmp_path):
    """transformers fills the gap with random weights."""
    save_tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = assert_cannot_be_loaded(str(tmp_path))
    assert message.endswith(": the checkpoint lacks model.layers.1.mlp.up_proj.weight")


def test_a_path_that_is_missing_or_a_file_is_one_line(tmp_path):
    assert_cannot_be_loaded(str(tmp_path / "none"))
    (tmp_path / "file").write_text("no model")
    assert_cannot_be_loaded(str(tmp_path / "file"))


def assert_cannot_be_loaded(model: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(ModelSettings(model=model))
    message = str(caught.value)
    assert message.startswith(f"--model {model!r} cannot be loaded: ")
    assert "\n" not in message
    return message


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_cannot_be_loaded("no/such-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
def test_cuda_without_a_device_is_refused(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(UsageError, match=r"--device 'cuda': no CUDA device is visible.*--device cpu"):
        load_model(ModelSettings(model=str(tmp_path), device="cuda"))
