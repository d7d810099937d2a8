"""Decode steps on a CUDA device: each segment, head test and verification is one graph, replayed.

Shapes: W rows, S cache columns.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from adadecode.kernels.arithmetic import attention_by
from adadecode.kernels.eager import EagerStep, LayerStep, Prefill
from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.sampling import Draw, Filters
from adadecode.kernels.step import Prefilled, Proposals
from adadecode.kernels.weights import Block, ExitTest, Gate, Head, Weights
from adadecode.printable import on_one_line
from adadecode.stopwatch import lap

WARMUPS = 3

GraphPool = Any  # memory that graphs share, as `torch.cuda.graph_pool_handle` names it


@functools.cache
def capture_stream(device_idx: int) -> torch.cuda.Stream:
    """The one stream of the current device, of this number, on which this process warms up and captures.

    Libraries hold a workspace for each stream that they see.
    """
    return torch.cuda.Stream()


def capture(call: Callable[[], object], pool: GraphPool, device_idx: int) -> Callable[[], None]:
    """The replay of a graph of `call` on the current device, of this number; raises what `call` raised.

    An error in `call` spoils the capture, and torch then fails to end it: that second error would hide the first, such as
    memory that ran out, and leave the stream of the capture the current one.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    first_error: BaseException | None = None
    try:
        with torch.cuda.graph(graph, pool=pool, stream=capture_stream(device_idx)):
            try:
                call()
            except BaseException as error:
                first_error = error
                raise
    except BaseException:
        torch.cuda.set_stream(stream)
        if first_error is not None:
            raise first_error from None
        raise
    finally:
        first_error = None  # an error that its own frame holds would keep the memory of all its frames
    return graph.replay


class GraphedStep(EagerStep):
    """An eager step whose calls are captured once and replayed: no launch overhead, no allocation.

    All it reads and writes is in buffers that stay where they are, from request to request; the cache is shared with steps
    of other widths, as one request decodes at a time and its prefill clears it. The graphs of all steps
    of a model share one memory pool: only one of them runs at a time, and what a graph leaves in the pool is read before
    the next one starts. A pool ends with its last graph, so models do not share one.
    """

    def __init__(
        self,
        weights: Weights,
        prefill: Prefill,
        width: int,
        cache: KVCache,
        layer_step: LayerStep,
        pool: GraphPool,
        attention: SDPBackend,
    ) -> None:
        """`attention` is who computes the rows' attention."""
        super().__init__(weights, prefill, width, cache, layer_step, attention)
        self._pool = pool
        self._host = self._host.pin_memory()
        self._segments: dict[tuple[int, int, Block | None], Callable[[], None]] = {}
        # by the filters of a draw too, which are steps of a graph; a draw's numbers are read when it is replayed
        self._tests: dict[tuple[Head | Gate, Filters | None], tuple[Callable[[], None], Tensor]] = {}
        self._verify: dict[Filters | None, tuple[Callable[[], None], Tensor]] = {}
        self._prepared: list[ExitTest] = []
        self._copied = torch.cuda.Event()
        self._landing = torch.zeros(2, width, dtype=torch.float64, pin_memory=True)
        _alive.add(self)

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        tests = list(tests)
        super().prepare(boundaries, tests)
        for start, stop in pairwise((0, *boundaries)):
            self._segment_graph(start, stop)
        self._prepared = tests
        self._prepare_tests()

    def _prepare_tests(self) -> None:
        for test in self._prepared:
            self._test_graph(test.head)
            if test.gate is not None:
                self._test_graph(test.gate)
        self._verify_graph()

    def draw_by(self, draw: Draw | None) -> None:
        before = self._filters
        super().draw_by(draw)
        if self._filters != before and self._verify:  # it was prepared: nothing is left to be captured later
            self._prepare_tests()

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        self.cache.clear()  # what an earlier request left there may not be finite
        return super().prefill(prompt_ids)

    def put(self, slot: int, token_ids: list[int]) -> None:
        self._copied.synchronize()  # the buffer may still be on its way to the device
        super().put(slot, token_ids)

    def begin(self, first_position: int) -> None:
        self._copied.synchronize()
        super().begin(first_position)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self._point_at(lo, hi)
        self._segment_graph(start, stop)()

    def _point_at(self, lo: int, hi: int) -> None:
        self._copied.synchronize()  # the buffer may still be on its way to the device
        super()._point_at(lo, hi)

    def _send_control(self) -> None:
        super()._send_control()
        self._copied.record()

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        self._place()
        both = self._replay(*self._test_graph(head))[:, lo:hi].tolist()
        return [(int(token_id), probability) for token_id, probability in zip(*both, strict=True)]

    def probe(self, gate: Gate, slot: int) -> float:
        return float(self._replay(*self._test_graph(gate))[0, slot])

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        self._place()
        token_ids, tops = self._replay(*self._verify_graph())[:, lo:hi].tolist()
        return [int(token_id) for token_id in token_ids], tops

    def _place(self) -> None:
        """Tells the device where the slots stand, if a draw needs it."""
        if self._filters is not None:
            self._send_control()

    def _segment_graph(self, start: int, stop: int) -> Callable[[], None]:
        key = (start, stop, self._blocks.get(stop))
        if key not in self._segments:
            self._segments[key] = self._capture(lambda: self.segment(start, stop))
        return self._segments[key]

    def _test_graph(self, test: Head | Gate) -> tuple[Callable[[], None], Tensor]:
        key = (test, None if isinstance(test, Gate) else self._filters)
        if key not in self._tests:
            out = torch.zeros(2, self.width, dtype=torch.float64, device=self.hidden.device)
            call = (lambda: self.chances(test)) if isinstance(test, Gate) else (lambda: self.proposals(test))
            self._tests[key] = self._capture(lambda: out.copy_(call())), out  # a gate's row of W fills both rows
        return self._tests[key]

    def _verify_graph(self) -> tuple[Callable[[], None], Tensor]:
        if self._filters not in self._verify:
            out = torch.zeros(2, self.width, dtype=torch.float64, device=self.hidden.device)
            self._verify[self._filters] = self._capture(lambda: out.copy_(self.verdicts())), out
        return self._verify[self._filters]

    def _replay(self, replay: Callable[[], None], out: Tensor) -> Tensor:
        """`out` after `replay`, on the host."""
        replay()
        self._landing.copy_(out, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._landing

    @lap("kernels")
    def _capture(self, call: Callable[[], object]) -> Callable[[], None]:
        """A graph of `call`, which must leave its buffers as replaying it once would.

        Warm-ups and capture run `call` on the live buffers, so hidden states and cache are put back between them; what
        the warm-ups wrote to the cache, the first replay writes again.
        """
        device_idx = self.hidden.device.index
        hidden, stream = self.hidden.clone(), capture_stream(device_idx)
        with attention_by(self._attention):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUPS):
                    call()
                    self.hidden.copy_(hidden)
            torch.cuda.current_stream().wait_stream(stream)
            replay = capture(call, self._pool, device_idx)
        self.hidden.copy_(hidden)
        return replay


_alive: WeakSet[GraphedStep] = WeakSet()  # the steps of this process, of any model


def free_workspaces() -> None:
    """Frees what cuBLAS holds for its streams, unless a graph is left that was captured with it."""
    if not _alive:
        torch._C._cuda_clearCublasWorkspaces()


@torch.inference_mode()
def why_no_graphs(new_step: Callable[[], GraphedStep]) -> str | None:
    """What fails, on one line, when `new_step`'s first layer and the LM head are captured and replayed; None if nothing.

    It stands for all graphs of a model: its layers are alike, and so are its heads. Raises what is no fault of graphs:
    memory that ran out, and the error of a device that is lost.
    """
    try:
        _replay_once(new_step())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()  # raises where the device is lost
        return on_one_line(error)
    return None


def _replay_once(step: GraphedStep) -> None:
    step.begin(0)
    step.put(0, [0])
    step.run(0, 1, 0, 1)
    step.verify(0, 1)
