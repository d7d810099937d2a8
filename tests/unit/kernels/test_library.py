"""native.cpp is compiled once for a processor, kept, and refused in one line where it cannot be had."""

import stat
from pathlib import Path

import pytest
import torch

from adadecode.errors import KernelsError
from adadecode.kernels import library
from adadecode.kernels.choose import choose_kernels
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.library import load_library
from adadecode.model.decoder import DecoderModel
from tests.models import needs_compiler, tiny_lm

CPU = torch.device("cpu")


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
