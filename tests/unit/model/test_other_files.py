"""Folders of models of families nobody taught the engine: they load, are looked at and decode, or are refused."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, Gemma3Config, MambaConfig, MptConfig

from adadecode.errors import UnsupportedModelError, UsageError
from adadecode.kernels.borrowed import PROMPT_ROWS
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import check_one_device, check_supported
from adadecode.model.load import load_model
from adadecode.model.machine_kind import CACHE_SHARE, MachineKind
from adadecode.model.own_attention import PLACE, Place, attend
from adadecode.settings import ModelSettings
from tests.folders import word_tokenizer, write_prompts
from tests.unit.model.test_own_layers import DENSE, EXPERTS, other_lm

KINDS = ["gpt2", "cohere2", "mixtral"]


def save_other(path, kind: str):
    lm = other_lm(kind, **(DENSE | EXPERTS)[kind])
    if kind == "gpt2":
        del lm.config.num_key_value_heads  # one of SIZES that it does not have
    lm.save_pretrained(path)
    word_tokenizer(lm.config.vocab_size).save_pretrained(path)
    return lm


def load(path) -> DecoderModel:
    return load_model(ModelSettings(model=str(path), dtype="float32"))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_an_unknown_family_loads(kind, tmp_path):
    lm = save_other(tmp_path, kind)
    model = load(tmp_path)
    assert model.kernels == "transformers"
    found, expected = dict(model.lm.named_parameters()), dict(lm.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda held: {k.removeprefix("transformer."): v for k, v in held.items()}, None),  # as on the hub
        (lambda held: {k: v for k, v in held.items() if "h.1.mlp.c_fc.weight" not in k}, "the checkpoint lacks"),
        (lambda held: held | {"transformer.wpe.weight": torch.zeros(64, 32)}, "of different models"),
        (lambda held: held | {"h.0.attn.qweight": torch.zeros(2, dtype=torch.int32)}, "gptq or awq"),
    ],
    ids=["no prefix", "missing", "mismatched", "packed"],
)
def test_what_its_files_have_is_judged_when_they_are_loaded(change, why, tmp_path):
    save_other(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})
    if why is None:
        load(tmp_path)
    else:
        with pytest.raises(UsageError, match=why):
            load(tmp_path)


def test_a_run_and_the_doctor_on_an_unknown_family(tmp_path, cli):
    save_other(tmp_path / "model", "cohere2")
    prompts = write_prompts(tmp_path / "prompts.jsonl", ["w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "w20 w21 w22"])
    flags = ["--model", str(tmp_path / "model"), "--task", "jsonl", "--data-file", str(prompts), "--dtype", "float32"]
    flags += ["--heads", "original", "--exits", "1,3", "--threads", "1", "--max-new-tokens", "10"]
    looked = cli("doctor", "--local", *flags, "--out", str(tmp_path / "run"))
    assert "will fail" not in looked.stdout, looked.stdout  # warnings: the family, and no equal logits
    assert "transformers" in next(line for line in looked.stdout.splitlines() if " kernels:" in line)
    assert "packed copy" not in looked.stdout
    ran = cli("eval", "--local", *flags, "--out", str(tmp_path / "run"))
    assert ran.exit_code == 0, ran.stdout
    assert "parity 2/2, logits 2/2" in ran.stdout


@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        (BloomConfig(), "no max_position_embeddings"),
        (MptConfig(), "no max_position_embeddings"),
        (MambaConfig(), "no num_attention_heads"),
        (Gemma3Config(), "save that alone, as gemma3_text"),
    ],
    ids=["bloom", "mpt", "mamba", "gemma3"],
)
def test_configurations_without_the_sizes_are_refused_in_one_line(config, lacks):
    for kernels in ("auto", "transformers"):
        with pytest.raises(UnsupportedModelError, match=lacks) as caught:
            check_supported(config, kernels)
        assert "\n" not in str(caught.value)


def test_several_gpus_are_refused_before_weights_are_read():
    with pytest.raises(UnsupportedModelError, match=r"--gpus-per-worker 2: .*use --gpus-per-worker 1"):
        check_one_device(other_lm("gpt2").config, "auto", 2)


def test_experts_are_computed_as_before_after_every_call_and_prompts_by_the_steps_rows():
    lm = other_lm("mixtral", **EXPERTS["mixtral"])
    before = lm.config._experts_implementation
    assert before != "batched_mm"
    model = DecoderModel(lm, "auto")
    own = model.weights.borrowed
    assert own is not None
    rows, inside, run = [], [], own.run

    def noted(calls, hidden, start, stop):
        rows.append(len(hidden))
        return run(calls, hidden, start, stop)

    own.run = noted
    model.layers[0].register_forward_hook(lambda *_: inside.append(lm.config._experts_implementation))
    model.new_step(4, 32).prefill([*range(1, 12)])
    assert (rows, {*inside}) == ([4, 4, 3], {"batched_mm"})
    assert lm.config._experts_implementation == before
    assert PROMPT_ROWS > 4


def test_a_finished_requests_cache_is_let_go():
    model = DecoderModel(other_lm("gpt2"), "auto")
    step = model.new_step(2, 32)
    step.prefill([1, 2, 3])
    cache = weakref.ref(step.cache)
    del step
    gc.collect()
    assert cache() is None


def test_a_mask_of_truth_values_hides_what_it_has_false_for():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    seen = torch.ones(3, 5, dtype=torch.bool).tril(1)[None, None]
    token = PLACE.set(Place(torch.arange(3), torch.arange(5)))
    try:
        found, _ = attend(torch.nn.Identity(), query, key, value, seen)
    finally:
        PLACE.reset(token)
    keys, values = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_borrowed_weights_are_counted_in_the_kind_of_machine(monkeypatch):
    model = DecoderModel(other_lm("gpt2"), "auto")
    num_bytes = sum(parameter.nbytes for parameter in model.lm.parameters())
    monkeypatch.setattr("adadecode.model.machine_kind.cache_bytes", lambda: 1.01 * num_bytes / CACHE_SHARE)
    assert MachineKind.of(model).weights == "cache"
    monkeypatch.setattr("adadecode.model.machine_kind.cache_bytes", lambda: 0.99 * num_bytes / CACHE_SHARE)
    assert MachineKind.of(model).weights == "memory"
