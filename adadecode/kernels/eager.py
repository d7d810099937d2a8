"""Decode steps of torch operations at static shapes.

Shapes: W rows, d model width, S cache columns, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from adadecode.kernels.arithmetic import PREFILL_BACKENDS, attention_by
from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.layers import causal_mask, embed, gate_step, head_step, layer_step, top1
from adadecode.kernels.sampling import Draw, Drawn, Filters, Numbers, drawn_by
from adadecode.kernels.step import (
    Prefilled,
    Proposals,
    Segment,
    blocks_of,
    check_slots,
    check_token_ids,
    run_probe_test,
)
from adadecode.kernels.weights import Block, ExitTest, Gate, Head, LayerKind, LayerWeights, RotaryTable, Weights

LayerStep = Callable[..., Tensor]  # `layer_step`, as written or compiled
# Runs a prompt `[T]`, fills the cache; gives the last row's logits `[V]`, and the hidden states `[T, d]` after the layers.
Prefill = Callable[[Tensor, KVCache, Collection[int]], tuple[Tensor, dict[int, Tensor]]]


class Places:
    """Where the W rows of a call stand: `positions` `[W]`, which are `idle` `[W, 1]`, and what `layer_step` takes of it."""

    def __init__(self, weights: Weights, positions: Tensor, idle: Tensor, all_columns: Tensor) -> None:
        """Over `all_columns` `[S]`, the last of which is scratch."""
        self.idle = idle[:, None]
        self._weights, self._positions, self._all_columns = weights, positions, all_columns
        self._columns = positions.masked_fill(idle, len(all_columns) - 1)
        self._rotaries: dict[int, RotaryTable] = {}
        self._masks: dict[int | None, Tensor] = {}  # by window

    def of(self, kind: LayerKind) -> tuple[RotaryTable | None, Tensor, Tensor]:
        """What a layer of `kind` takes: rotary, columns and mask."""
        return None if kind.rotary is None else self._rotary(kind.rotary), self._columns, self._mask(kind.window)

    def _rotary(self, idx: int) -> RotaryTable:
        if idx not in self._rotaries:
            cos, sin = self._weights.rotaries[idx]
            angles = self._positions.clamp(max=len(cos) - 1)  # S may be longer than the context
            self._rotaries[idx] = cos[angles][:, None], sin[angles][:, None]
        return self._rotaries[idx]

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            shape = self._weights.shape
            mask = causal_mask(self._positions, self._all_columns, window, self._weights.dtype)
            self._masks[window] = mask.repeat(shape.num_heads // shape.num_kv_heads, 1)
        return self._masks[window]


class BlockRows:
    """What the block of one exit works in: `rows` `[W, d]` that it made, and its keys and values."""

    def __init__(self, block: Block, weights: Weights, width: int, num_columns: int) -> None:
        self.layer: LayerWeights = block.layer
        self.rows = torch.zeros(width, weights.width, dtype=weights.dtype, device=weights.device)
        self.cache = weights.new_cache(num_columns, 1)


class EagerStep:
    """A decode step of torch operations at static shapes: every call computes all W rows.

    Rows that take no part enter a layer as zeros, so nothing they compute can overflow, and write to the scratch column.
    All that varies from call to call is in `control` `[W + 3]`: token ids, lo, hi and the first position.
    """

    def __init__(
        self,
        weights: Weights,
        prefill: Prefill | None,
        width: int,
        cache: KVCache,
        layer_step: LayerStep = layer_step,
        attention: SDPBackend | None = None,
        prompts: Sequence[SDPBackend] = PREFILL_BACKENDS,
    ) -> None:
        """W = `width` rows over `cache`; one layer of rows is run by `layer_step`, prompts by `prefill`.

        `prefill` is None for a subclass that runs prompts itself.
        `attention` is who computes that of the rows, on CUDA, and the first of `prompts` that can that of prompts; None
        leaves both to torch.
        """
        self.weights, self.width = weights, width
        self._prefill, self._layer_step = prefill, layer_step
        self._attention, self._prompts = attention, None if attention is None else prompts
        self.cache = cache
        device, dtype = weights.device, weights.dtype
        self.hidden = torch.zeros(width, weights.width, dtype=dtype, device=device)
        self.logits = torch.zeros(width, weights.vocab_size, dtype=dtype, device=device)
        self.control = torch.zeros(width + 3, dtype=torch.long, device=device)
        self._slots = torch.arange(width, device=device)
        self._columns = torch.arange(cache.num_columns, device=device)
        self._host = torch.zeros(width + 3, dtype=torch.long)
        self._blocks: dict[int, Block] = {}  # by exit layer, of the tests last prepared
        self._block_rows: WeakKeyDictionary[Block, BlockRows] = WeakKeyDictionary()
        self._numbers = Numbers(device)  # of the draw, if any
        self._filters: Filters | None = None  # of the draw; None for the argmax

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        self._blocks = blocks_of(tests)
        for block in self._blocks.values():
            if block not in self._block_rows:
                self._block_rows[block] = BlockRows(block, self.weights, self.width, self.cache.num_columns)

    def draw_by(self, draw: Draw | None) -> None:
        self._filters = None if draw is None else draw.filters
        if draw is not None:
            self._numbers.put(draw)

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        logits = self.prompt_logits(prompt_ids)
        if self._filters is None:
            top, token_id = logits.max(dim=-1)
        else:
            places = (len(prompt_ids) - self._numbers.first_position)[None]
            token_id, top, _ = drawn_by(self._numbers, self._filters, logits[None], places, None)
        return Prefilled(int(token_id), float(top), logits)

    def prompt_logits(self, prompt_ids: list[int]) -> Tensor:
        """Runs the prompt, as `prefill` does; the logits `[V]` of its last row."""
        assert self._prefill is not None
        check_token_ids(prompt_ids, self.weights.vocab_size)
        token_ids = torch.tensor(prompt_ids, device=self.hidden.device)
        with attention_by(self._prompts):
            logits, hidden = self._prefill(token_ids, self.cache, {*self._blocks, self.weights.num_layers})
            self.hidden[0] = hidden[self.weights.num_layers][-1]
            for exit_layer, block in self._blocks.items():
                self._prefill_block(self._block_rows[block], hidden[exit_layer])
        return logits

    def _prefill_block(self, block: BlockRows, hidden: Tensor) -> None:
        """The prompt's hidden states `[T, d]` at an exit through its block, W rows at a time."""
        for first in range(0, len(hidden), self.width):
            rows = hidden[first : first + self.width]
            self.begin(first)
            self._point_at(0, len(rows))
            block.rows[: len(rows)] = rows
            self._run_block(block, block.rows, self._places())

    def begin(self, first_position: int) -> None:
        self._host[-1] = first_position

    def put(self, slot: int, token_ids: list[int]) -> None:
        check_slots(slot, slot + len(token_ids), self.width)
        check_token_ids(token_ids, self.weights.vocab_size)
        self._host[slot : slot + len(token_ids)] = torch.tensor(token_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self._point_at(lo, hi)
        with attention_by(self._attention):
            self.segment(start, stop)

    def _point_at(self, lo: int, hi: int) -> None:
        """Slots [lo, hi) take part in what comes next."""
        self._host[-3], self._host[-2] = lo, hi
        self._send_control()

    def _send_control(self) -> None:
        self.control.copy_(self._host, non_blocking=True)

    def _places(self) -> Places:
        """Where the rows stand, as `control` says."""
        lo, hi, first_position = self.control[-3], self.control[-2], self.control[-1]
        idle = (self._slots < lo) | (self._slots >= hi)
        # rows past the cache are clamped to the scratch column; they never take part
        positions = (first_position + self._slots).clamp(max=self.cache.scratch)
        return Places(self.weights, positions, idle, self._columns)

    def segment(self, start: int, stop: int) -> None:
        """Layers [start, stop) on `hidden`, in place, as `control` says; before layer 1 the tokens are embedded.

        Then the block of exit layer `stop`, if any, on what these rows are now.
        """
        places = self._places()
        weights, idle = self.weights, places.idle
        entering = embed(weights, self.control[: self.width]) if start == 0 else self.hidden
        out = entering.masked_fill(idle, 0.0)
        for idx in range(start, stop):
            where, (keys, values) = places.of(weights.kind(idx)), self.cache.layer(idx)
            out = self._layer_step(weights.layers[idx], weights.shape, out, *where, keys, values)
        self.hidden.copy_(torch.where(idle, self.hidden, out))
        if stop in self._blocks:
            self._run_block(self._block_rows[self._blocks[stop]], out, places)

    def _run_block(self, block: BlockRows, entering: Tensor, places: Places) -> None:
        """The rows that take part, of `entering` `[W, d]`, through `block`; its other rows stay."""
        idle, where = places.idle, places.of(self.weights.kind(-1))
        keys, values = block.cache.layer(0)
        out = self._layer_step(block.layer, self.weights.shape, entering.masked_fill(idle, 0.0), *where, keys, values)
        block.rows.copy_(torch.where(idle, block.rows, out))

    def read_by(self, head: Head) -> Tensor:
        return self.hidden if head.block is None else self._block_rows[self._blocks[head.block.exit_layer]].rows

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        return run_probe_test(self, segment, test, first_tested)

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        both = self._rows(lambda slots: self.proposals(head, slots), lo, hi).tolist()
        return [(int(token_id), probability) for token_id, probability in zip(*both, strict=True)]

    def _rows(self, call: Callable[[slice], Tensor], lo: int, hi: int) -> Tensor:
        """What `call` gives for slots [lo, hi), `[2, hi - lo]`: an argmax takes all W rows, a draw only these."""
        if self._filters is None:
            return call(slice(None))[:, lo:hi]
        self._send_control()  # where the slots stand, which may have changed since they were run
        return call(slice(lo, hi))

    def proposals(self, head: Head, slots: slice = slice(None)) -> Tensor:
        """Token ids and probabilities of `slots`, all W unless told, `[2, W]` float64, which holds both exactly."""
        logits = head_step(head, self.weights, self.read_by(head))[slots]
        token_ids, _, probabilities = self._drawn(logits, head.token_ids, slots) or top1(logits, head.token_ids)
        return torch.stack((token_ids.double(), probabilities.double()))

    def _drawn(self, logits: Tensor, token_ids: Tensor | None, slots: slice) -> Drawn | None:
        """What is drawn from the logits `[W, K]` of `slots`; None where nothing is."""
        if self._filters is None:
            return None
        places = (self.control[-1] + 1 - self._numbers.first_position + self._slots)[slots]
        return drawn_by(self._numbers, self._filters, logits, places, token_ids)

    def probe(self, gate: Gate, slot: int) -> float:
        return float(self.chances(gate)[slot])

    def chances(self, gate: Gate) -> Tensor:
        """What `gate` gives for all W rows, `[W]` float32."""
        return gate_step(gate, self.weights, self.hidden)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        token_ids, tops = self._rows(self.verdicts, lo, hi).tolist()
        return [int(token_id) for token_id in token_ids], tops

    def final_logits(self) -> Tensor:
        """Logits `[W, V]` of all W rows by the model's own head."""
        return head_step(self.weights.head, self.weights, self.hidden)

    def verdicts(self, slots: slice = slice(None)) -> Tensor:
        """Fills `logits`; next tokens and their logits of `slots`, all W unless told, `[2, W]` float64."""
        self.logits.copy_(self.final_logits())
        drawn = self._drawn(self.logits[slots], None, slots)
        if drawn is None:
            tops, token_ids = self.logits[slots].max(dim=-1)
        else:
            token_ids, tops, _ = drawn
        return torch.stack((token_ids.double(), tops.double()))
