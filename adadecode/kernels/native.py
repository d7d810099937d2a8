"""Decode steps in native.cpp.

Shapes: W rows, d model width, S cache columns, V vocabulary.
"""

import ctypes
import functools
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from adadecode.kernels.layers import embed
from adadecode.kernels.library import BlockStruct, DrawStruct, ExitTestStruct, Pointer
from adadecode.kernels.packed import PackedHead, PackedLayers, PackedWeights, shape_struct
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import Prefilled, Proposals, Segment, blocks_of, check_slots, check_token_ids
from adadecode.kernels.weights import Block, ExitTest, Gate, Head, Weights

# Rows of a prompt that are run at once: few enough that what they work in stays small, and so many that the weights,
# which each block reads anew, are read seldom.
BLOCK_LEN = 256


class NativeBlock:
    """What the block of one exit works in for one request: `rows` `[W, d]` that it made, and its keys and values."""

    def __init__(self, block: Block, packed: PackedLayers, weights: Weights, width: int, num_columns: int) -> None:
        self.block, self.layers = block, packed.structs
        self.rows = torch.zeros(width, weights.width, dtype=weights.dtype)
        self.rows_at = self.rows.data_ptr()
        self._cache = weights.new_cache(num_columns, 1)
        self.kv_at = self._cache.kv.data_ptr()
        self._struct = BlockStruct(ctypes.addressof(packed.structs), self.rows_at, self.kv_at)
        self.address = ctypes.addressof(self._struct)


class NativeDraw:
    """A draw as the library takes it, and what it works in, which greedy requests do without."""

    def __init__(self, draw: Draw, library: ctypes.CDLL, num_threads: int) -> None:
        self._library, self._num_threads, self._widest = library, num_threads, 0
        self._struct = DrawStruct(
            (ctypes.c_uint32 * 2)(draw.key & 0xFFFF_FFFF, draw.key >> 32),
            min(draw.top_k, 2**31 - 1),
            draw.first_position,
            1.0 / draw.temperature,
            math.log(draw.min_p) if draw.min_p else -math.inf,
            draw.top_p,
        )
        self._address = ctypes.addressof(self._struct)

    def at(self, num_rows: int, widest: int) -> int:
        """The address, with room for `num_rows` rows, always as many, of at most `widest` logits."""
        if widest > self._widest:
            self._scratch = torch.empty(
                self._library.adadecode_draw_len(self._num_threads, num_rows, widest), dtype=torch.float32
            )
            self._struct.scratch, self._widest = self._scratch.data_ptr(), widest
        return self._address


class NativeStep:
    """A decode step in native.cpp, where a row's bits do not depend on other rows: only rows that take part are run.

    The library checks no index and allocates nothing. So calls raise IndexError before they would reach past a buffer, and
    all it works in is allocated here, where memory that runs out is an error like any other.
    """

    def __init__(self, weights: Weights, packed: PackedWeights, width: int, num_columns: int) -> None:
        """W = `width` rows over S = `num_columns`; `packed` are `weights` as the library reads them."""
        self.weights, self.width, self._packed = weights, width, packed
        self.cache = weights.new_cache(num_columns)
        self.hidden = torch.zeros(width, weights.width, dtype=weights.dtype)
        self.logits = torch.zeros(width, weights.vocab_size, dtype=weights.dtype)
        self._first_position = 0
        self._draw: NativeDraw | None = None
        self._head, self._vocab_size = weights.head, weights.vocab_size
        self._rotaries = [table[:num_columns].float().contiguous() for rotary in weights.rotaries for table in rotary]
        self._rotaries_at = (Pointer * len(self._rotaries))(*(table.data_ptr() for table in self._rotaries))
        self._num_positions = min(num_columns, *(len(table) for table in self._rotaries))
        self._shape = shape_struct(weights, num_columns, torch.get_num_threads(), ctypes.addressof(self._rotaries_at))
        self._has_scaled_embedding = weights.embedding_scale != 1.0
        self._widest_head = 0
        self._row_len = weights.width * weights.dtype.itemsize  # bytes
        self._logits_len = weights.vocab_size * weights.dtype.itemsize
        # addresses and functions are looked up once: after a segment Python is out of the caches and every step of it slow
        self._hidden_at, self._table_at = self.hidden.data_ptr(), weights.embedding.data_ptr()
        self._kv_at = self.cache.kv.data_ptr()
        self._norm_at, self._logits_at = weights.norm.data_ptr(), self.logits.data_ptr()
        self._shape_at = ctypes.addressof(self._shape)
        self._make_room(weights.vocab_size)
        self._ids = (ctypes.c_int64 * width)()
        self._tops, self._probabilities = (ctypes.c_float * width)(), (ctypes.c_float * width)()
        library, run = packed.library, (self._shape_at, packed.layers.structs)
        self._run_layers = functools.partial(library.adadecode_run_layers, *run)
        self._run_to_exit = functools.partial(library.adadecode_run_to_exit, *run)
        self._exit_tests: dict[ExitTest, tuple[ExitTestStruct, int]] = {}  # and its address
        self._blocks: dict[int, NativeBlock] = {}  # by exit layer

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        tests = list(tests)
        before, self._blocks = self._blocks, {}
        for block in blocks_of(tests).values():
            there = before.get(block.exit_layer)
            self._blocks[block.exit_layer] = (
                self._new_block(block) if there is None or there.block is not block else there
            )
        self._prepare_tests(tests)

    def _prepare_tests(self, tests: Iterable[ExitTest]) -> None:
        for test in tests:
            head, gate = self._packed_head(test.head), test.gate
            exit_test = ExitTestStruct(
                norm=self._norm_at,
                matrices=head.matrices_at,
                sizes=head.sizes_at,
                token_ids=head.token_ids_at,
                ids=ctypes.addressof(self._ids),
                tops=ctypes.addressof(self._tops),
                probabilities=ctypes.addressof(self._probabilities),
                gate=None if gate is None else self._gate_at(gate),
                num_matrices=head.num_matrices,
                reads_block=test.head.block is not None,
                bias=0.0 if gate is None else gate.bias,
                least=test.least,
            )
            self._exit_tests[test] = exit_test, ctypes.addressof(exit_test)

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        for first in range(0, len(prompt_ids), BLOCK_LEN):
            block = torch.tensor(prompt_ids[first : first + BLOCK_LEN])
            hidden = embed(self.weights, block)
            for start, stop in pairwise((0, *sorted(self._blocks), self.weights.num_layers)):
                self._run(hidden.data_ptr(), len(block), first, start, stop)
                if stop in self._blocks:
                    self._run_block(self._blocks[stop], hidden.clone(), first)
            self.hidden[0] = hidden[-1]
        self.begin(len(prompt_ids) - 1)
        [token_id], [top] = self.verify(0, 1)
        return Prefilled(token_id, top, self.logits[0].clone())

    def draw_by(self, draw: Draw | None) -> None:
        self._draw = None if draw is None else NativeDraw(draw, self._packed.library, self._shape.num_threads)

    def begin(self, first_position: int) -> None:
        self._first_position = first_position

    def put(self, slot: int, token_ids: list[int]) -> None:
        check_slots(slot, slot + len(token_ids), self.width)
        check_token_ids(token_ids, self._vocab_size)
        row_len, to = self._row_len, self._hidden_at + slot * self._row_len
        for token_id in token_ids:
            ctypes.memmove(to, self._table_at + token_id * row_len, row_len)
            to += row_len
        if self._has_scaled_embedding:
            self._packed.library.adadecode_scale_embedding(
                self._shape_at, self._hidden_at + slot * row_len, len(token_ids)
            )

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        check_slots(lo, hi, self.width)
        if stop in self._blocks:
            self._run_with_block(Segment(lo, hi, start, stop), None, 0)
        else:
            self._run(self._hidden_at + lo * self._row_len, hi - lo, self._first_position + lo, start, stop)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        lo, hi, _, stop = segment
        check_slots(lo, first_tested, self.width)
        check_slots(first_tested, hi, self.width)
        block = self._blocks.get(stop)
        if test.head.block is not None and (block is None or block.block is not test.head.block):
            raise ValueError(f"the block of a head at exit layer {stop} was not prepared")
        if test not in self._exit_tests:
            self._prepare_tests([test])
        is_tested = self._run_with_block(segment, self._exit_tests[test][1], hi - first_tested)
        return self._proposals(hi - first_tested) if is_tested else None

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        self._run_head(head, lo, hi, None, self._probabilities)
        return self._proposals(hi - lo)

    def probe(self, gate: Gate, slot: int) -> float:
        check_slots(slot, slot + 1, self.width)
        row, weights = self._hidden_at + slot * self._row_len, self._gate_at(gate)
        return self._packed.library.adadecode_gate(self._shape_at, row, self._norm_at, weights, gate.bias)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self._run_head(self._head, lo, hi, self._logits_at + lo * self._logits_len, None)
        return self._ids[: hi - lo], self._tops[: hi - lo]

    def _draw_at(self) -> int | None:
        """The address of the draw with room for all heads there are by now, or null for the argmax."""
        return None if self._draw is None else self._draw.at(self.width, self._widest_head)

    def _proposals(self, num_rows: int) -> Proposals:
        return list(zip(self._ids[:num_rows], self._probabilities[:num_rows], strict=True))

    def _run(self, hidden: int, num_rows: int, first_position: int, start: int, stop: int) -> None:
        """Rows at address `hidden` through layers [start, stop)."""
        self._check_segment(first_position, num_rows, start, stop)
        self._run_layers(hidden, num_rows, first_position, self._kv_at, start, stop)

    def _run_with_block(self, segment: Segment, test_at: int | None, num_tested: int) -> int:
        """Runs `segment`, the block at its end, if any, and the test at an address; returns whether it tested."""
        lo, hi, start, stop = segment
        self._check_segment(self._first_position + lo, hi - lo, start, stop)
        block = self._blocks.get(stop)
        return self._run_to_exit(
            self._hidden_at + lo * self._row_len,
            hi - lo,
            self._first_position + lo,
            self._kv_at,
            start,
            stop,
            lo,
            None if block is None else block.address,
            test_at,
            num_tested,
            self._draw_at(),
        )

    def _new_block(self, block: Block) -> NativeBlock:
        return NativeBlock(block, self._packed.block(block), self.weights, self.width, self.cache.num_columns)

    def _run_block(self, block: NativeBlock, rows: Tensor, first_position: int) -> None:
        """`rows` `[M, d]` from `first_position` on through `block`, in place."""
        self._packed.library.adadecode_run_layers(
            self._shape_at, block.layers, rows.data_ptr(), len(rows), first_position, block.kv_at, 0, 1
        )

    def read_by(self, head: Head) -> Tensor:
        return self.hidden if head.block is None else self._blocks[head.block.exit_layer].rows

    def _run_head(self, head: Head, lo: int, hi: int, logits: int | None, probabilities: Any) -> None:
        check_slots(lo, hi, self.width)
        packed = self._packed_head(head)
        self._packed.library.adadecode_head(
            self._shape_at,
            (self._hidden_at if head.block is None else self._blocks[head.block.exit_layer].rows_at)
            + lo * self._row_len,
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
            self._draw_at(),
            self._first_position + lo,
        )

    def _packed_head(self, head: Head) -> PackedHead:
        """`head` as the library takes it, with room to work in."""
        packed = self._packed.head(head)
        if packed.widest > self._widest_head:
            self._make_room(packed.widest)
        return packed

    def _make_room(self, widest_head: int) -> None:
        """Allocates what calls work in, for heads of at most `widest_head` inputs or outputs; its addresses are new."""
        num_rows = max(self.width, min(BLOCK_LEN, self.cache.num_columns))
        num_floats = self._packed.library.adadecode_scratch_len(self._shape_at, num_rows, self.width, widest_head)
        self._scratch = torch.empty(num_floats, dtype=torch.float32)
        self._shape.scratch = self._scratch.data_ptr()
        self._widest_head = widest_head

    def _gate_at(self, gate: Gate) -> int:
        """The address of the weights of `gate`, which must be what the library takes them for."""
        weights = gate.weights
        if weights.dtype != torch.float32 or len(weights) != self.weights.width or not weights.is_contiguous():
            raise ValueError(f"a gate of {weights.dtype} {list(weights.shape)}, not float32 [{self.weights.width}]")
        return weights.data_ptr()

    def _check_segment(self, first_position: int, num_rows: int, start: int, stop: int) -> None:
        if not 0 <= first_position <= first_position + num_rows <= self._num_positions:
            raise IndexError(f"{num_rows} rows from position {first_position} on, of {self._num_positions}")
        if not 0 <= start <= stop <= self.weights.num_layers:
            raise IndexError(f"layers [{start}, {stop}) of {self.weights.num_layers}")
