"""native.cpp is compiled once for a processor, kept, and refused in one line where it cannot be had."""

import hashlib
import os
import re
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
from adadecode.records import ChosenKernels
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
    why = "there is no C++ compiler: install one such as g++, or name it in CXX"
    with pytest.raises(KernelsError, match=re.escape(f"--kernels native: {why}; or use --kernels eager")):
        DecoderModel(tiny_lm(), "native")
    model = DecoderModel(tiny_lm(), "auto")
    assert model.chosen_kernels.lines() == [f"kernels: eager, because {why}"]
    assert isinstance(model.new_step(8, 20), EagerStep)


@pytest.mark.parametrize("script", ["echo native.cpp:1: error: no such header >&2; exit 1", "exit 3"])
def test_a_compiler_that_fails_is_one_line_with_what_it_said(script, uncompiled, monkeypatch):
    compiler = fake_compiler(uncompiled / "failing-g++", script)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(KernelsError) as caught:
        load_library()
    message = str(caught.value)
    assert message.startswith(f"{compiler} cannot compile the native kernels (")
    assert ("no such header" if "header" in script else "(exit status 3)") in message
    assert "\n" not in message
    assert choose_kernels("auto", CPU, torch.float32) == ChosenKernels("eager", message)
    assert list((uncompiled / "cache" / "adadecode").iterdir()) == []


def test_a_compiler_that_is_not_there_is_one_line(uncompiled, monkeypatch):
    monkeypatch.setenv("CXX", str(uncompiled / "no-such-g++"))
    with pytest.raises(KernelsError, match=r"no-such-g\+\+ cannot compile the native kernels \(.*No such file"):
        load_library()
    assert choose_kernels("auto", CPU, torch.bfloat16).kernels == "eager"


def test_a_library_that_cannot_be_loaded_is_a_clear_error_and_auto_is_eager(uncompiled, monkeypatch):
    """Such as one in a cache folder on a file system that forbids execution."""
    script = 'while [ "$1" != -o ]; do shift; done; echo no library > "$2"'
    monkeypatch.setenv("CXX", fake_compiler(uncompiled / "wrong-g++", script))
    with pytest.raises(KernelsError, match=r"are compiled and cannot be loaded \(.*native-"):
        load_library()
    assert choose_kernels("auto", CPU, torch.float32).kernels == "eager"


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
@pytest.mark.parametrize("left", ["nothing", "half", "zeros", "another system's"])
def test_a_kept_library_that_is_not_whole_is_compiled_once_more(uncompiled, copying_compiler, monkeypatch, left):
    """As a power cut leaves it; half of a library may be loaded and end the process when its other half is used."""
    load_library()
    [kept] = (uncompiled / "cache" / "adadecode").iterdir()
    content = kept.read_bytes()
    damaged = {
        "nothing": b"",
        "half": content[: len(content) // 2],
        "zeros": content[:-4096] + bytes(4096),
        "another system's": (other := b"no library here") + hashlib.sha256(other).digest(),
    }
    # in another folder: what is loaded already is found by its path, not read again
    elsewhere = uncompiled / "another-cache" / "adadecode"
    elsewhere.mkdir(parents=True)
    (elsewhere / kept.name).write_bytes(damaged[left])
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere.parent))
    for _ in range(2):
        load_library.cache_clear()
        assert load_library().adadecode_tile() in (16, 32)
    assert len(copying_compiler.read_text().splitlines()) == 2


@needs_compiler
def test_a_compiled_library_is_on_disk_before_it_has_its_name(uncompiled, copying_compiler, monkeypatch):
    seen = []
    fsync, replace = os.fsync, Path.replace

    def tell_fsync(descriptor: int) -> None:
        seen.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().suffix))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append(("rename", path.suffix)), replace(path, to))[1])
    load_library()
    assert seen == [("fsync", ".tmp"), ("rename", ".tmp"), ("fsync", "")]


@needs_compiler
def test_a_compiler_may_be_a_command_of_several_words(uncompiled, copying_compiler, monkeypatch):
    copying = os.environ["CXX"]
    wrapper = fake_compiler(uncompiled / "a wrapper", 'exec "$@"')
    monkeypatch.setenv("CXX", f"'{wrapper}' {copying} -g0")
    assert load_library().adadecode_tile() in (16, 32)
    assert copying_compiler.read_text().startswith("-g0 -std=c++17")


def test_a_compiler_that_is_no_command_is_one_line(uncompiled, monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'of mine")
    with pytest.raises(KernelsError, match=r"CXX=.* is no command of a C\+\+ compiler \(No closing quotation\)"):
        load_library()


@needs_compiler
def test_without_a_home_and_a_name_the_library_is_compiled_elsewhere(uncompiled, copying_compiler, monkeypatch):
    """As in a container whose user is a number."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.tempdir", str(uncompiled))
    assert Path(load_library()._name).parent.parent == uncompiled


@needs_compiler
def test_without_a_cache_folder_the_library_is_compiled_elsewhere(uncompiled, copying_compiler, monkeypatch):
    (uncompiled / "cache").write_text("a file, no folder")
    monkeypatch.setattr("tempfile.tempdir", str(uncompiled))
    assert Path(load_library()._name).parent.parent == uncompiled


def test_a_library_that_others_may_have_written_is_not_run(uncompiled, copying_compiler):
    kept = Path(load_library()._name)
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    kept.chmod(0o722)
    kept.parent.chmod(0o777)
    load_library.cache_clear()
    assert load_library()._name == str(kept)
    assert len(copying_compiler.read_text().splitlines()) == 2, "it was compiled again"
    assert kept.stat().st_mode & 0o777 == 0o700
    assert kept.parent.stat().st_mode & 0o777 == 0o755, "what a loose umask left open is closed"


def test_a_cache_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    assert library._is_ours_alone(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 4711)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    is_roots = tmp_path.stat().st_uid == 0
    assert library._is_ours_alone(tmp_path) == is_roots
    assert library._cached("native-x.so").is_relative_to(tmp_path) == is_roots
