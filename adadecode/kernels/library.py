"""native.cpp as a library: compiled for the processor at hand at its first use, kept, and loaded with its structures."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from adadecode.errors import KernelsError
from adadecode.files import OTHERS_WRITE, PRIVATE, short_hash, whole_file
from adadecode.printable import on_one_line

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = (SOURCE.with_name("draw.h"),)
# sums are fused where the source says so and nowhere else: else a compiler could do it for some numbers of rows only
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared")
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
DIGEST_LEN = 32  # bytes of a SHA-256

Pointer, Int, Float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


LAYER_POINTERS = (
    *("input_norm", "input_norm_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "o", "o_bias", "attention_out_norm"),
    *("post_norm", "post_norm_bias", "gate_up", "gate_up_bias", "down", "down_bias", "mlp_out_norm"),
)


class LayerStruct(ctypes.Structure):
    """The pointers to one layer's weights, null for those it does not have, and what is its own of a layer."""

    _fields_ = [*((name, Pointer) for name in LAYER_POINTERS), ("window", Int), ("rotary", Int)]


class ShapeStruct(ctypes.Structure):
    """The sizes of a model, what its layers have in common, and the tables and the scratch of a decode step."""

    _fields_ = [
        *((name, Int) for name in ("d", "F", "H", "G", "D", "R", "S", "is_bf16", "num_threads")),
        *((name, Int) for name in ("activation", "is_gated", "is_parallel", "has_norms_over_heads")),
        *(("eps", Float), ("norm_offset", Float), ("is_layer_norm", Int)),
        *((name, Float) for name in ("scale", "attention_cap")),
        *((name, Float) for name in ("residual_scale", "embedding_scale", "logit_divisor", "logit_cap")),
        *((name, Pointer) for name in ("norm_bias", "rotaries", "scratch")),
    ]


class ExitTestStruct(ctypes.Structure):
    """An exit's test: its head, its gate, and where what they say of each row is written."""

    _fields_ = [
        *((name, Pointer) for name in ("norm", "matrices", "sizes", "token_ids")),
        *((name, Pointer) for name in ("ids", "tops", "probabilities", "gate")),
        ("num_matrices", Int),
        ("reads_block", Int),
        ("bias", ctypes.c_float),
        ("least", ctypes.c_float),
    ]


class BlockStruct(ctypes.Structure):
    """The layer that heads at an exit have for themselves, the rows it made, and its keys and values."""

    _fields_ = [(name, Pointer) for name in ("layer", "rows", "kv")]


class DrawStruct(ctypes.Structure):
    """A draw, its key in two halves, and the scratch that drawing works in."""

    _fields_ = [
        ("key", ctypes.c_uint32 * 2),
        ("top_k", Int),
        ("first_position", Int),
        ("scale", ctypes.c_float),
        ("min_scaled", ctypes.c_float),
        ("top_p", ctypes.c_double),
        ("scratch", Pointer),
    ]


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled native.cpp, from the user's cache folder or compiled now; raises KernelsError when it cannot be.

    What is in the cache folder and not whole, as after a power cut, is compiled again.
    """
    compiler = cpp_compiler()
    content = b"".join(source.read_bytes() for source in (SOURCE, *HEADERS))
    path = _cached(f"native-{short_hash(content, repr((FLAGS, compiler, _processor())))}.so")
    try:
        library = _load(path)
    except OSError:
        library = _compiled(compiler, path)
    library.adadecode_run_layers.argtypes = [Pointer, Pointer, Pointer, Int, Int, Pointer, Int, Int]
    library.adadecode_scale_embedding.argtypes = [Pointer, Pointer, Int]
    library.adadecode_scale_embedding.restype = library.adadecode_function.restype = None
    library.adadecode_function.argtypes = [Int, Pointer, ctypes.c_int64, Pointer]
    library.adadecode_head.argtypes = [
        Pointer, Pointer, Int, Pointer, Pointer, Pointer, Int, Pointer, Pointer, Pointer, Pointer, Pointer,
        Pointer, Int,
    ]  # fmt: skip
    library.adadecode_run_to_exit.argtypes = [
        *library.adadecode_run_layers.argtypes,
        Int,
        Pointer,
        Pointer,
        Int,
        Pointer,
    ]
    library.adadecode_gate.argtypes = [Pointer, Pointer, Pointer, Pointer, Float]
    library.adadecode_read.argtypes = [Pointer, ctypes.c_int64, Int]
    library.adadecode_read.restype = ctypes.c_float
    library.adadecode_scratch_len.argtypes = [Pointer, Int, Int, Int]
    library.adadecode_scratch_len.restype = ctypes.c_int64
    library.adadecode_draw_len.argtypes = [Int, Int, Int]
    library.adadecode_draw_len.restype = ctypes.c_int64
    library.adadecode_run_layers.restype = library.adadecode_head.restype = None
    library.adadecode_gate.restype = ctypes.c_float
    return library


def cpp_compiler() -> tuple[str, ...]:
    """The words that begin a call of the C++ compiler: those of CXX, else g++ or c++; raises KernelsError without one."""
    told = os.environ.get("CXX", "")
    try:
        words = tuple(shlex.split(told))
    except ValueError as error:
        raise KernelsError(f"CXX={told!r} is no command of a C++ compiler ({error}): give one such as g++") from error
    found = words or tuple(filter(None, [shutil.which("g++") or shutil.which("c++")]))
    if not found:
        raise KernelsError("there is no C++ compiler: install one such as g++, or name it in CXX")
    return found


def _cached(name: str) -> Path:
    """Where the library `name` is or goes: the user's cache folder, or a new folder where that cannot be written."""
    with contextlib.suppress(OSError, RuntimeError):  # a container's user may have neither a home nor a name
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adadecode" / name
        if _is_whole(path) and _is_ours_alone(path.parent):
            return path
        path.parent.mkdir(PRIVATE, parents=True, exist_ok=True)
        if os.access(path.parent, os.W_OK) and _is_ours_alone(path.parent):
            return path
    return Path(tempfile.mkdtemp(prefix="adadecode-")) / name


def _is_ours_alone(path: Path) -> bool:
    """Whether nobody but this user, and root, may write to the file or folder: what is there is run as this user.

    A folder that this user left open, by a loose umask, is closed.
    """
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        return False
    if found.st_mode & OTHERS_WRITE and path.is_dir():
        path.chmod(found.st_mode & 0o777 & ~OTHERS_WRITE)
        return True
    return not found.st_mode & OTHERS_WRITE


def _compiled(compiler: Sequence[str], path: Path) -> ctypes.CDLL:
    """native.cpp compiled to `path`, which other processes may do at the same time; raises KernelsError.

    The library ends in a digest of what is before it, which loading ignores.
    """
    try:
        with whole_file(path, many_writers=True) as unfinished:
            command = [*compiler, *FLAGS, f"-I{HEADERS[0].parent}", str(SOURCE), "-o", str(unfinished)]
            subprocess.run(command, check=True, capture_output=True)
            with unfinished.open("ab") as file:
                file.write(hashlib.sha256(unfinished.read_bytes()).digest())
            unfinished.chmod(PRIVATE)
    except (OSError, subprocess.CalledProcessError) as error:
        told = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            told = error.stderr.decode(errors="replace") or f"exit status {error.returncode}"
        raise KernelsError(f"{shlex.join(compiler)} cannot compile the native kernels ({on_one_line(told)})") from error
    try:
        return _load(path)
    except OSError as error:
        raise KernelsError(f"the native kernels are compiled and cannot be loaded ({error})") from error


def _load(path: Path) -> ctypes.CDLL:
    """The library at `path`; raises OSError when it is not there, not whole, or of another system."""
    if not _is_whole(path):
        raise OSError(f"{path} is not whole")
    return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Whether a compiled library is at `path`, put there by this user; one that was cut might end the process later."""
    try:
        content = path.read_bytes()
        if not _is_ours_alone(path):
            return False
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_LEN]).digest() == content[-DIGEST_LEN:]


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.processor()
