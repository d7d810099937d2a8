"""Loads native.cpp, compiled for the processor at hand, and runs decode steps with it.

Shapes: M rows, d model width, N outputs and K inputs of a linear layer, D head width, S cache columns, V vocabulary.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adadecode.errors import KernelsError
from adadecode.kernels.step import Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate, Head

if TYPE_CHECKING:
    from adadecode.model.decoder import DecoderModel


SOURCE = Path(__file__).with_name("native.cpp")
# sums are fused where the source says so and nowhere else: else a compiler could do it for some numbers of rows only
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared")
DTYPES = (torch.float32, torch.bfloat16)

Pointer, Int = ctypes.c_void_p, ctypes.c_int32


class _LayerWeights(ctypes.Structure):
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


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("d", "F", "H", "G", "D", "S", "is_bf16", "num_threads")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class _ExitTest(ctypes.Structure):
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
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + repr((FLAGS, compiler, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adadecode"
    path = folder / f"native-{key}.so"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            can_write = os.access(folder, os.W_OK)
        except OSError:
            can_write = False
        if not can_write:
            path = Path(tempfile.mkdtemp(prefix="adadecode-")) / path.name
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(unfinished)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = " ".join(getattr(error, "stderr", b"").decode(errors="replace").split())[:200]
            raise KernelsError(
                f"{compiler} cannot compile the native kernels; use --kernels eager ({reason})"
            ) from error
        os.replace(unfinished, path)
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
    library.adadecode_run_layers.restype = library.adadecode_head.restype = None
    library.adadecode_gate.restype = ctypes.c_float
    return library


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.processor()


def pack_weight(weight: Tensor, tile: int) -> Tensor:
    """`weight` `[N, K]` as `[ceil(N / tile), K, tile]`, so that a step reads it in one stream.

    bfloat16 elements of a tile's two halves alternate, because a 32-bit word holds one of each.
    """
    num_outputs, num_inputs = weight.shape
    num_tiles = -(-num_outputs // tile)
    padded = torch.zeros(num_tiles * tile, num_inputs, dtype=weight.dtype)
    padded[:num_outputs] = weight.detach()
    packed = padded.view(num_tiles, tile, num_inputs).transpose(1, 2)
    if weight.dtype == torch.bfloat16:
        packed = packed.reshape(num_tiles, num_inputs, 2, tile // 2).transpose(2, 3)
    return packed.contiguous()


class _PackedHead:
    """A head as the library takes it."""

    def __init__(self, head: Head, packed: list[Tensor]) -> None:
        self._packed = packed  # keeps the memory alive
        sizes = [head.matrices[0].shape[1], *(matrix.shape[0] for matrix in head.matrices)]
        self.num_matrices = len(self._packed)
        self._matrices = (Pointer * len(self._packed))(*(matrix.data_ptr() for matrix in self._packed))
        self._sizes = (Int * len(sizes))(*sizes)
        self._token_ids = None if head.token_ids is None else head.token_ids.to(torch.int64).contiguous()
        self.matrices_at, self.sizes_at = ctypes.addressof(self._matrices), ctypes.addressof(self._sizes)
        self.token_ids_at = None if self._token_ids is None else self._token_ids.data_ptr()


class NativeWeights:
    """The weights of one model packed for the library; shared by all its decode steps."""

    def __init__(self, model: "DecoderModel") -> None:
        self.library = load_library()
        self.tile: int = self.library.adadecode_tile()
        self._kept: list[Tensor] = []
        self.layers = (_LayerWeights * model.num_layers)(
            *(_LayerWeights(*(self._pointer(t) for t in vars(weights).values())) for weights in model.layers)
        )
        self._heads: WeakKeyDictionary[Head, _PackedHead] = WeakKeyDictionary()
        self._matrices = WeakTensorKeyDictionary()  # heads share the model's own

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        kept = pack_weight(tensor, self.tile) if tensor.dim() == 2 else tensor.detach().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def head(self, head: Head) -> _PackedHead:
        packed = self._heads.get(head)
        if packed is None:
            packed = self._heads[head] = _PackedHead(head, [self._pack_once(matrix) for matrix in head.matrices])
        return packed

    def _pack_once(self, matrix: Tensor) -> Tensor:
        if matrix not in self._matrices:
            self._matrices[matrix] = pack_weight(matrix, self.tile)
        return self._matrices[matrix]


class NativeStep:
    """A decode step in native.cpp, where a row's bits do not depend on other rows: only rows that take part are run."""

    def __init__(self, model: "DecoderModel", width: int, num_columns: int) -> None:
        assert model.native is not None
        self.model, self.width, self._weights = model, width, model.native
        self.cache = model.new_cache(num_columns)
        self.hidden = torch.zeros(width, model.width, dtype=model.dtype)
        self.logits = torch.zeros(width, model.vocab_size, dtype=model.dtype)
        self._first_position = 0
        shape, config = model.shape, model.config
        self._shape = _Shape(
            model.width,
            config.intermediate_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            num_columns,
            int(model.dtype == torch.bfloat16),
            torch.get_num_threads(),
            shape.eps,
            shape.scale,
        )
        self._rotary = [table[:num_columns].float().contiguous() for table in model.rotary]
        self._row_len = model.width * model.dtype.itemsize  # bytes
        self._logits_len = model.vocab_size * model.dtype.itemsize
        # addresses and functions are looked up once: after a segment Python is out of the caches and every step of it slow
        self._hidden_at, self._table_at = self.hidden.data_ptr(), model.lm.model.embed_tokens.weight.data_ptr()
        self._around_rows = (self.cache.kv.data_ptr(), *(table.data_ptr() for table in self._rotary))
        self._norm_at, self._logits_at = model.norm.data_ptr(), self.logits.data_ptr()
        self._shape_at = ctypes.addressof(self._shape)
        self._ids = (ctypes.c_int64 * width)()
        self._tops, self._probabilities = (ctypes.c_float * width)(), (ctypes.c_float * width)()
        library, run = self._weights.library, (self._shape_at, self._weights.layers)
        self._run_layers = functools.partial(library.adadecode_run_layers, *run)
        self._run_to_exit = functools.partial(library.adadecode_run_to_exit, *run)
        self._exit_tests: dict[ExitTest, tuple[_ExitTest, int]] = {}  # and its address

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        for test in tests:
            packed, gate = self._weights.head(test.head), test.gate
            exit_test = _ExitTest(
                norm=self._norm_at,
                matrices=packed.matrices_at,
                sizes=packed.sizes_at,
                token_ids=packed.token_ids_at,
                ids=ctypes.addressof(self._ids),
                tops=ctypes.addressof(self._tops),
                probabilities=ctypes.addressof(self._probabilities),
                gate=None if gate is None else gate.weights.data_ptr(),
                num_matrices=packed.num_matrices,
                bias=0.0 if gate is None else gate.bias,
                least=test.least,
            )
            self._exit_tests[test] = exit_test, ctypes.addressof(exit_test)

    def prefill(self, prompt_ids: list[int]) -> Tensor:
        hidden = self.model.embed(torch.tensor(prompt_ids))
        self._run(hidden.data_ptr(), len(prompt_ids), 0, 0, self.model.num_layers)
        self.hidden[0] = hidden[-1]
        self.verify(0, 1)
        return self.logits[0].clone()

    def begin(self, first_position: int) -> None:
        self._first_position = first_position

    def put(self, slot: int, token_ids: list[int]) -> None:
        assert slot + len(token_ids) <= self.width, (slot, len(token_ids))
        row_len, to = self._row_len, self._hidden_at + slot * self._row_len
        for token_id in token_ids:
            assert 0 <= token_id < self.model.vocab_size, token_id
            ctypes.memmove(to, self._table_at + token_id * row_len, row_len)
            to += row_len

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        assert 0 <= lo < hi <= self.width, (lo, hi, self.width)
        self._run(self._hidden_at + lo * self._row_len, hi - lo, self._first_position + lo, start, stop)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        lo, hi, start, stop = segment
        assert 0 <= lo <= first_tested < hi <= self.width, (segment, first_tested, self.width)
        assert self._first_position + hi <= self.cache.num_columns, (self._first_position, segment)
        if test not in self._exit_tests:
            self.prepare((), [test])
        is_tested = self._run_to_exit(
            self._hidden_at + lo * self._row_len,
            hi - lo,
            self._first_position + lo,
            *self._around_rows,
            start,
            stop,
            self._exit_tests[test][1],
            hi - first_tested,
        )
        return self._proposals(hi - first_tested) if is_tested else None

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        self._head(head, lo, hi, None, self._probabilities)
        return self._proposals(hi - lo)

    def probe(self, gate: Gate, slot: int) -> float:
        row, weights = self._hidden_at + slot * self._row_len, gate.weights.data_ptr()
        return self._weights.library.adadecode_gate(self._shape_at, row, self._norm_at, weights, gate.bias)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self._head(self.model.head, lo, hi, self._logits_at + lo * self._logits_len, None)
        return self._ids[: hi - lo], self._tops[: hi - lo]

    def _proposals(self, num_rows: int) -> Proposals:
        return list(zip(self._ids[:num_rows], self._probabilities[:num_rows], strict=True))

    def _run(self, hidden: int, num_rows: int, first_position: int, start: int, stop: int) -> None:
        """Rows at address `hidden` through layers [start, stop)."""
        assert first_position + num_rows <= self.cache.num_columns, (first_position, num_rows)
        self._run_layers(hidden, num_rows, first_position, *self._around_rows, start, stop)

    def _head(self, head: Head, lo: int, hi: int, logits: int | None, probabilities: Any) -> None:
        assert 0 <= lo < hi <= self.width, (lo, hi, self.width)
        packed = self._weights.head(head)
        self._weights.library.adadecode_head(
            self._shape_at,
            self._hidden_at + lo * self._row_len,
            hi - lo,
            self._norm_at,
            packed.matrices_at,
            packed.sizes_at,
            packed.num_matrices,
            packed.token_ids_at,
            logits,
            self._ids,
            self._tops,
            probabilities,
        )
