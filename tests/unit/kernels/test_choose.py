"""Which kernels a model decodes with, and what its steps share."""

import re

import pytest
import torch

from adadecode.errors import KernelsError
from adadecode.kernels.choose import choose_kernels
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.native import NativeStep
from adadecode.model.decoder import DecoderModel
from tests.models import needs_compiler, tiny_lm, tiny_model

CPU = torch.device("cpu")


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
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(KernelsError, match=rf"--kernels native: only on a CPU .* not on {device} in {name}; use"):
        choose_kernels("native", torch.device(device), dtype)
    assert choose_kernels("auto", torch.device(device), dtype).kernels == "eager"


def test_auto_says_why_it_is_slower_than_it_could_be_and_nothing_where_it_is_not():
    half = choose_kernels("auto", CPU, torch.float16)
    assert half.lines() == ["kernels: eager, because native ones compute in float32 and bfloat16, not in float16"]
    for device, kernels in (("cuda", "auto"), ("cuda", "eager"), ("cpu", "eager")):
        assert choose_kernels(kernels, torch.device(device), torch.float32).lines() == []


@pytest.mark.parametrize(
    ("device", "told", "says"),
    [
        ("cpu", {}, "a C++ compiler, and there is no g++: install one, name it in CXX in one word"),
        ("cpu", {"CXX": "ccache g++"}, "a C++ compiler, and there is no ccache g++: install one"),
        ("cuda", {}, "a C compiler, and there is no gcc or clang: install one, name it in CC in one word"),
        ("cuda", {"CC": "/no/gcc"}, "a C compiler, and there is no /no/gcc: install one"),
    ],
)
def test_compiled_kernels_are_refused_in_one_line_without_what_compiles_them(device, told, says, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KernelsError, match=f"--kernels compile: torch.compile needs {re.escape(says)}") as caught:
        choose_kernels("compile", torch.device(device), torch.float32)
    assert str(caught.value).endswith("or use --kernels eager")
    assert "\n" not in str(caught.value)


def test_compiled_kernels_are_refused_on_a_gpu_without_triton(monkeypatch, tmp_path):
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KernelsError, match="needs the package triton"):
        choose_kernels("compile", torch.device("cuda"), torch.float32)


@needs_compiler
def test_compiled_kernels_are_had_where_there_is_a_compiler():
    assert choose_kernels("compile", CPU, torch.float16).kernels == "compile"


def test_a_model_in_float16_refuses_native_kernels_in_one_line():
    with pytest.raises(KernelsError) as caught:
        tiny_model(dtype=torch.float16, kernels="native")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
