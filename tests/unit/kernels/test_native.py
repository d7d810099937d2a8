"""native.cpp: rows whose bits depend on nothing else, weights in tiles, and a library that is compiled once."""

import stat
from pathlib import Path

import pytest
import torch

from adadecode.errors import KernelsError
from adadecode.kernels import library
from adadecode.kernels.choose import choose_kernels
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.library import load_library
from adadecode.kernels.native import NativeStep
from adadecode.kernels.packed import pack_weight
from adadecode.kernels.weights import Head
from adadecode.model.decoder import DecoderModel
from tests.models import FAMILIES, needs_compiler, tiny_lm, tiny_model

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
PROMPT = [11, 12, 13, 14, 15]
TOKENS = [(7 * i + 3) % 61 for i in range(17)]
# every path of the kernels: whole vectors only, rests everywhere, and one, two and four queries that share keys
SIZES = {
    "tiny": {},
    "rests": {"hidden_size": 42, "intermediate_size": 50, "head_dim": 20, "num_attention_heads": 6, "vocab_size": 65},
    "wide heads": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64},
    "wider heads with a rest": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 80},
}


@pytest.fixture
def num_threads():
    """Sets torch's number of threads, which native steps take over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_in_calls(model: DecoderModel, *calls: int) -> NativeStep:
    """A step with TOKENS after PROMPT run through all layers, in calls of so many rows; the last call takes the rest."""
    step = model.new_step(len(TOKENS), 40)
    assert isinstance(step, NativeStep)
    step.prefill(PROMPT)
    step.begin(len(PROMPT))
    step.put(0, TOKENS)
    lo = 0
    for num_rows in (*calls, len(TOKENS)):
        hi = min(lo + num_rows, len(TOKENS))
        if lo < hi:
            step.run(lo, hi, 0, model.num_layers)
        lo = hi
    return step


def assert_same_bits(step: NativeStep, expected: NativeStep) -> None:
    assert torch.equal(step.hidden, expected.hidden)
    assert torch.equal(step.cache.kv, expected.cache.kv)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_calls_of_1_to_17_rows(sizes, family, dtype):
    model = tiny_model(family, kernels="native", dtype=dtype, num_layers=2, **SIZES[sizes])
    expected = run_in_calls(model, *[1] * 17)
    expected.verify(0, 17)
    for num_rows in range(2, 18):
        step = run_in_calls(model, *[num_rows] * (17 // num_rows))
        assert_same_bits(step, expected)
        shifted = run_in_calls(model, 17 - num_rows, num_rows)
        assert_same_bits(shifted, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_a_row_has_the_same_logits_and_proposal_in_calls_of_1_to_17_rows(sizes, dtype):
    model = tiny_model("qwen2", kernels="native", dtype=dtype, num_layers=1, **SIZES[sizes])
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.randn(n, model.width, generator=generator).to(dtype) for n in (model.width, 43)]
    head = Head(tuple(matrices), torch.randperm(97, generator=generator)[:43])
    step = run_in_calls(model)
    proposals = [step.test(head, slot, slot + 1)[0] for slot in range(17)]
    logits, token_ids, tops = [], [], []
    for slot in range(17):  # as slot 0, alone
        step.hidden[0] = run_in_calls(model).hidden[slot]
        [token_id], [top] = step.verify(0, 1)
        logits.append(step.logits[0].clone())
        token_ids.append(token_id)
        tops.append(top)
    step = run_in_calls(model)
    for num_rows in range(1, 18):
        assert step.verify(0, num_rows) == (token_ids[:num_rows], tops[:num_rows])
        assert torch.equal(step.logits[:num_rows], torch.stack(logits[:num_rows]))
        for lo in (0, 17 - num_rows):
            assert step.test(head, lo, lo + num_rows) == proposals[lo : lo + num_rows]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_the_bits_are_the_same_with_any_number_of_threads(sizes, dtype, num_threads):
    model = tiny_model("qwen3", kernels="native", dtype=dtype, num_layers=2, **SIZES[sizes])
    for calls in ([1] * 17, [3, 5], [17]):
        num_threads(1)
        expected = run_in_calls(model, *calls)
        verdict = expected.verify(0, 17)
        for more in (2, 3):
            num_threads(more)
            step = run_in_calls(model, *calls)
            assert_same_bits(step, expected)
            assert step.verify(0, 17) == verdict
            assert torch.equal(step.logits, expected.logits)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_native_and_eager_kernels_compute_the_same_numbers(sizes, family, dtype):
    """After each layer, in the cache and in the logits, within the rounding of the dtype."""
    lm = tiny_lm(family, num_layers=3, **SIZES[sizes]).to(dtype)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 40) for kernels in ("native", "eager"))
    assert isinstance(theirs, EagerStep)
    for step in (ours, theirs):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:6])
    for layer in range(3):
        for step in (ours, theirs):
            step.run(0, 2, layer, layer + 1)
            step.run(2, 6, layer, layer + 1)
        torch.testing.assert_close(ours.hidden[:6], theirs.hidden[:6], **close)
    for step in (ours, theirs):
        step.verify(0, 6)
    torch.testing.assert_close(ours.logits[:6], theirs.logits[:6], **close)
    columns = slice(0, len(PROMPT) + 6)
    torch.testing.assert_close(ours.cache.kv[:, :, :, columns], theirs.cache.kv[:, :, :, columns], **close)


@needs_compiler
@torch.inference_mode()
def test_attention_over_many_columns_agrees_with_the_eager_kernels():
    lm = tiny_lm("qwen3", num_layers=2, head_dim=40)
    prompt = [(5 * i + i // 7) % 97 for i in range(700)]
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 720) for kernels in ("native", "eager"))
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(ours.prefill(prompt), theirs.prefill(prompt), **close)
    for step in (ours, theirs):
        step.begin(700)
        step.put(0, TOKENS[:7])
        step.run(0, 7, 0, 2)
    torch.testing.assert_close(ours.hidden[:7], theirs.hidden[:7], **close)


@needs_compiler
@torch.inference_mode()
def test_activations_of_any_size_agree_with_the_eager_kernels():
    """The exponential in SiLU and softmax, far out on both sides."""
    lm = tiny_lm(num_layers=1)
    lm.model.layers[0].mlp.gate_proj.weight.data.mul_(300.0)
    lm.model.layers[0].self_attn.q_proj.weight.data.mul_(300.0)
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 40) for kernels in ("native", "eager"))
    for step in (ours, theirs):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:8])
        step.run(0, 8, 0, 1)
    torch.testing.assert_close(ours.hidden, theirs.hidden, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("shape", [(32, 8), (1, 5), (33, 3), (97, 32), (64, 1)])
def test_a_packed_weight_holds_each_output_of_a_tile_beside_the_others(shape, tile):
    num_outputs, num_inputs = shape
    weight = torch.arange(1.0, num_outputs * num_inputs + 1).view(shape)
    packed = pack_weight(weight, tile)
    assert packed.shape == (-(-num_outputs // tile), num_inputs, tile)
    assert packed.is_contiguous()
    unpacked = packed.transpose(1, 2).reshape(-1, num_inputs)
    assert torch.equal(unpacked[:num_outputs], weight)
    assert not unpacked[num_outputs:].any()


@pytest.mark.parametrize("tile", [16, 32])
def test_a_packed_bfloat16_weight_alternates_the_halves_of_a_tile(tile):
    weight = torch.randn(45, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    packed = pack_weight(weight, tile).view(-1, 7, tile)
    halves = torch.cat((packed[..., 0::2], packed[..., 1::2]), dim=-1)
    unpacked = halves.transpose(1, 2).reshape(-1, 7)
    assert torch.equal(unpacked[:45], weight)
    assert not unpacked[45:].any()


@needs_compiler
def test_a_model_decodes_with_the_kernels_it_was_given():
    lm = tiny_lm()
    assert isinstance(DecoderModel(lm, "native").new_step(8, 20), NativeStep)
    assert isinstance(DecoderModel(lm, "eager").new_step(8, 20), EagerStep)
    assert [DecoderModel(lm, kernels).kernels for kernels in ("auto", "native", "eager")] == [
        "native",
        "native",
        "eager",
    ]


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float16), ("cuda", torch.float32), ("cuda", torch.bfloat16)]
)
def test_native_kernels_are_refused_where_there_are_none(device, dtype):
    with pytest.raises(KernelsError, match=rf"--kernels native: only on a CPU .* not on {device} in {dtype}; use"):
        choose_kernels("native", torch.device(device), dtype)
    assert choose_kernels("auto", torch.device(device), dtype) == "eager"


def test_a_model_in_float16_refuses_native_kernels_in_one_line():
    with pytest.raises(KernelsError) as caught:
        tiny_model(dtype=torch.float16, kernels="native")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.fixture
def uncompiled(monkeypatch, tmp_path):
    """No library is loaded yet, and the cache folder is empty; both are as they were after the test."""
    load_library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    yield tmp_path
    load_library.cache_clear()


def fake_compiler(path: Path, script: str) -> str:
    """A compiler of shell commands."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture(scope="module")
def compiled() -> str:
    """The path of the library all other tests use."""
    return load_library()._name


@pytest.fixture
def copying_compiler(compiled, uncompiled, monkeypatch) -> Path:
    """Sets CXX to a compiler that copies the compiled library, for speed; returns the file that logs its calls."""
    log = uncompiled / "calls"
    script = f'echo "$@" >> {log}; while [ "$1" != -o ]; do shift; done; cp {compiled} "$2"'
    monkeypatch.setenv("CXX", fake_compiler(uncompiled / "copying-g++", script))
    return log


def test_without_a_compiler_native_kernels_are_refused_and_auto_is_eager(uncompiled, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(KernelsError, match=r"need a C\+\+ compiler .* --kernels eager"):
        load_library()
    with pytest.raises(KernelsError, match="compiler"):
        DecoderModel(tiny_lm(), "native")
    model = DecoderModel(tiny_lm(), "auto")
    assert model.kernels == "eager"
    assert isinstance(model.new_step(8, 20), EagerStep)


@pytest.mark.parametrize("script", ["echo native.cpp:1: error: no such header >&2; exit 1", "exit 3"])
def test_a_compiler_that_fails_is_one_line_with_what_it_said(script, uncompiled, monkeypatch):
    compiler = fake_compiler(uncompiled / "failing-g++", script)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(KernelsError) as caught:
        load_library()
    message = str(caught.value)
    assert message.startswith(f"{compiler} cannot compile the native kernels; use --kernels eager (")
    assert ("no such header" in message) == ("header" in script)
    assert "\n" not in message
    assert choose_kernels("auto", CPU, torch.float32) == "eager"
    assert list((uncompiled / "cache" / "adadecode").iterdir()) == []


def test_a_compiler_that_is_not_there_is_one_line(uncompiled, monkeypatch):
    monkeypatch.setenv("CXX", str(uncompiled / "no-such-g++"))
    with pytest.raises(KernelsError, match=r"no-such-g\+\+ cannot compile the native kernels"):
        load_library()
    assert choose_kernels("auto", CPU, torch.bfloat16) == "eager"


def test_a_library_that_cannot_be_loaded_is_a_clear_error_and_auto_is_eager(uncompiled, monkeypatch):
    """Such as one in a cache folder on a file system that forbids execution."""
    script = 'while [ "$1" != -o ]; do shift; done; echo no library > "$2"'
    monkeypatch.setenv("CXX", fake_compiler(uncompiled / "wrong-g++", script))
    with pytest.raises(KernelsError, match="--kernels eager"):
        load_library()
    assert choose_kernels("auto", CPU, torch.float32) == "eager"


@needs_compiler
def test_a_compiled_library_is_kept_in_the_cache_folder_and_reused(uncompiled, copying_compiler):
    for _ in range(2):
        assert load_library().adadecode_tile() in (16, 32)
        load_library.cache_clear()
    assert len(copying_compiler.read_text().splitlines()) == 1
    [kept] = (uncompiled / "cache" / "adadecode").iterdir()
    assert kept.name.startswith("native-")
    assert kept.suffix == ".so"


@needs_compiler
def test_another_source_or_processor_is_compiled_for_anew(uncompiled, copying_compiler, monkeypatch):
    load_library()
    changed = uncompiled / "native.cpp"
    changed.write_bytes(library.SOURCE.read_bytes() + b"// changed")
    monkeypatch.setattr(library, "SOURCE", changed)
    load_library.cache_clear()
    load_library()
    monkeypatch.setattr(library, "_processor", lambda: "another")
    load_library.cache_clear()
    load_library()
    assert len(copying_compiler.read_text().splitlines()) == 3
    assert len(list((uncompiled / "cache" / "adadecode").iterdir())) == 3


@needs_compiler
def test_without_a_cache_folder_the_library_is_compiled_elsewhere(uncompiled, copying_compiler, monkeypatch):
    (uncompiled / "cache").write_text("a file, no folder")
    monkeypatch.setattr("tempfile.tempdir", str(uncompiled))
    assert Path(load_library()._name).parent.parent == uncompiled


# What a compiler may be told besides -march=native: no vectors of 8, vectors of 8, vectors of 16.
INSTRUCTION_SETS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@torch.inference_mode()
def test_other_instruction_sets_keep_bits_and_numbers_too(instruction_set, uncompiled, monkeypatch):
    if INSTRUCTION_SETS[instruction_set] not in library._processor().split():
        pytest.skip(f"this processor has no {INSTRUCTION_SETS[instruction_set]}")
    flags = [f"-march={instruction_set}" if flag == "-march=native" else flag for flag in library.FLAGS]
    monkeypatch.setattr(library, "FLAGS", (*flags, "-Wno-psabi"))
    for sizes in SIZES.values():
        for dtype in DTYPES:
            lm = tiny_lm("qwen3", num_layers=2, **sizes).to(dtype)
            model = DecoderModel(lm, "native")
            expected = run_in_calls(model, *[1] * 17)
            for num_rows in range(2, 18):
                assert_same_bits(run_in_calls(model, *[num_rows] * (17 // num_rows)), expected)
            eager = DecoderModel(lm, "eager").new_step(8, 40)
            eager.prefill(PROMPT)
            eager.begin(len(PROMPT))
            eager.put(0, TOKENS[:8])
            eager.run(0, 8, 0, 2)
            digits = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(expected.hidden[:8], eager.hidden, rtol=digits, atol=digits)
