"""native.cpp as a library: compiled for the processor at hand at its first use, kept, and loaded with its structures."""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from adadecode.errors import KernelsError
from adadecode.files import short_hash, whole_file

SOURCE = Path(__file__).with_name("native.cpp")
# sums are fused where the source says so and nowhere else: else a compiler could do it for some numbers of rows only
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared")
NATIVE_DTYPES = (torch.float32, torch.bfloat16)

Pointer, Int = ctypes.c_void_p, ctypes.c_int32


class LayerStruct(ctypes.Structure):
    """The pointers to one layer's weights; null for those it does not have."""

    _fields_ = [
        (name, Pointer)
        for name in (
            "input_norm",
            "qkv",
            "qkv_bias",
            "q_norm",
            "k_norm",
            "o",
            "post_norm",
            "gate_up",
            "down",
        )
    ]


class ShapeStruct(ctypes.Structure):
    """The sizes of a model, which its layers have in common, and the scratch of a decode step."""

    _fields_ = [
        *((name, Int) for name in ("d", "F", "H", "G", "D", "S", "is_bf16", "num_threads")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("scratch", Pointer),
    ]


class ExitTestStruct(ctypes.Structure):
    """An exit's test: its head, its gate, and where what they say of each row is written."""

    _fields_ = [
        *((name, Pointer) for name in ("norm", "matrices", "sizes", "token_ids")),
        *((name, Pointer) for name in ("ids", "tops", "probabilities", "gate")),
        ("num_matrices", Int),
        ("bias", ctypes.c_float),
        ("least", ctypes.c_float),
    ]


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled native.cpp, from the user's cache folder or compiled now; raises KernelsError when it cannot be."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise KernelsError("native kernels need a C++ compiler such as g++: install one, or use --kernels eager")
    path = _cached(f"native-{short_hash(SOURCE.read_bytes(), repr((FLAGS, compiler, _processor())))}.so")
    if not path.exists():
        _compile(compiler, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelsError(f"the native kernels cannot be loaded; use --kernels eager ({error})") from error
    library.adadecode_run_layers.argtypes = [
        Pointer, Pointer, Pointer, Int, Int, Pointer, Pointer, Pointer, Int, Int
    ]  # fmt: skip
    library.adadecode_head.argtypes = [
        Pointer, Pointer, Int, Pointer, Pointer, Pointer, Int, Pointer, Pointer, Pointer, Pointer, Pointer
    ]  # fmt: skip
    library.adadecode_run_to_exit.argtypes = [*library.adadecode_run_layers.argtypes, Pointer, Int]
    library.adadecode_gate.argtypes = [Pointer, Pointer, Pointer, Pointer, ctypes.c_float]
    library.adadecode_scratch_len.argtypes = [Pointer, Int, Int, Int]
    library.adadecode_scratch_len.restype = ctypes.c_int64
    library.adadecode_run_layers.restype = library.adadecode_head.restype = None
    library.adadecode_gate.restype = ctypes.c_float
    return library


def _cached(name: str) -> Path:
    """Where the library `name` is or goes: the user's cache folder, or a new folder where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adadecode"
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        can_write = os.access(folder, os.W_OK)
    except OSError:
        can_write = False
    return (folder if can_write else Path(tempfile.mkdtemp(prefix="adadecode-"))) / name


def _compile(compiler: str, path: Path) -> None:
    """Compiles native.cpp to `path`, which other processes may do at the same time; raises KernelsError."""
    with whole_file(path, many_writers=True) as unfinished:
        try:
            subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(unfinished)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = " ".join(getattr(error, "stderr", b"").decode(errors="replace").split())[:200]
            raise KernelsError(
                f"{compiler} cannot compile the native kernels; use --kernels eager ({reason})"
            ) from error


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.processor()
