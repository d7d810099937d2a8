"""Which kernels a model decodes with, and what its steps share."""

import contextlib
import re
from collections.abc import Callable, Generator

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InductorError

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy
from adadecode.errors import KernelsError
from adadecode.kernels import choose
from adadecode.kernels.arithmetic import PLAIN_BACKENDS
from adadecode.kernels.choose import choose_kernels
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.native import NativeStep
from adadecode.kernels.weights import Weights
from adadecode.model.decoder import DecoderModel
from tests.models import needs_compiler, random_heads, tiny_lm, tiny_model

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
    assert choose_kernels("auto", torch.device(device), dtype).kernels == ("eager" if device == "cpu" else "graphs")


def test_graphs_are_refused_where_there_are_none():
    with pytest.raises(KernelsError, match="--kernels graphs: they are CUDA's, not to be had on cpu; use") as caught:
        choose_kernels("graphs", CPU, torch.float32)
    assert caught.value.exit_code == 2


def test_auto_says_why_it_is_slower_than_it_could_be_and_nothing_where_it_is_not():
    half = choose_kernels("auto", CPU, torch.float16)
    assert half.lines() == ["kernels: eager, because native ones compute in float32 and bfloat16, not in float16"]
    for device, kernels in (("cuda", "auto"), ("cuda", "eager"), ("cuda", "graphs"), ("cpu", "eager")):
        assert choose_kernels(kernels, torch.device(device), torch.float32).lines() == []


CAPTURING = "CUDA error: operation not permitted when stream is capturing"


@contextlib.contextmanager
def uncapturable() -> Generator[None]:
    """The device is called CUDA meanwhile, and every capture fails."""

    def refuse(*_: object) -> None:
        raise torch.AcceleratorError(f"{CAPTURING}\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weights, "device", property(lambda _: torch.device("cuda")))
        patch.setattr(choose, "GraphedStep", refuse)
        patch.setattr(choose, "_check_compilable", lambda _: None)
        for name in ("graph_pool_handle", "synchronize"):
            patch.setattr(torch.cuda, name, lambda: None)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        yield


def test_auto_does_without_graphs_where_they_fail_and_says_what_failed():
    with uncapturable():
        model = DecoderModel(tiny_lm(), "auto")
    assert model.chosen_kernels.lines() == [
        f"kernels: eager, because CUDA graphs fail here ({CAPTURING} Compile with `TORCH_USE_CUDA_DSA` to enable "
        "device-side assertions)"
    ]
    assert type(model.new_step(8, 20)) is EagerStep
    assert model.steps.attention == "MATH", "nothing but one call of torch after the other"
    assert model.new_step(8, 20)._prompts == PLAIN_BACKENDS, "of prompts too"
    check_rows_independent(model, 8)
    request = Request([5, 6, 7] * 3, 20, record_logits=True)
    policy = Policy((1, 2, 3), (0.05,) * 3, 5)
    vanilla = generate(model, request)
    adadecode = generate(model, request, policy, drafters_of(policy, random_heads(model, policy.exits)))
    assert torch.equal(vanilla.logits, adadecode.logits)
    assert adadecode.generation.num_accepted > 0


def test_graphs_that_were_asked_for_and_fail_are_one_line():
    for kernels in ("graphs", "compile"):
        with (
            uncapturable(),
            pytest.raises(KernelsError, match=f"^--kernels {kernels}: CUDA graphs fail here .*; use --kernels eager"),
        ):
            DecoderModel(tiny_lm(), kernels)


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


class NoCompiler:
    """Stands in for torch.compile: what it compiles fails with `error` when it is called."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, function: object, **_: object) -> Callable[..., Tensor]:
        def compiled(*_: object) -> Tensor:
            raise InductorError(self.error, None)

        return compiled


def test_layers_that_cannot_be_compiled_are_one_line_that_says_what_is_missing(monkeypatch):
    missing = RuntimeError("No working C++ compiler found in torch._inductor.config\nand much more")
    monkeypatch.setattr(torch, "compile", NoCompiler(missing))
    model = tiny_model(num_layers=1, kernels="compile")
    with pytest.raises(
        KernelsError, match=r"^--kernels compile: .*g\+\+.* --kernels auto or eager \(No working"
    ) as caught:
        check_rows_independent(model, 8)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_memory_that_runs_out_while_layers_are_compiled_is_told_as_such(monkeypatch):
    monkeypatch.setattr(torch, "compile", NoCompiler(torch.OutOfMemoryError("CUDA out of memory")))
    model = tiny_model(num_layers=1, kernels="compile")
    with pytest.raises(torch.OutOfMemoryError):
        check_rows_independent(model, 8)
