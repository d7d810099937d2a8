"""The rows of a decode step over one K/V cache: static buffers and the kernels that work on them.

Shapes: W rows, d model width, D head width, S cache columns, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adadecode.kernels.layers import gate_step, head_step, top1
from adadecode.kernels.weights import ExitTest, Gate, Head

if TYPE_CHECKING:
    from adadecode.model.decoder import DecoderModel
from adadecode.kernels.step import Proposals, Segment, run_probe_test


class EagerStep:
    """A decode step of torch operations at static shapes: every call computes all W rows.

    Rows that take no part enter a layer as zeros, so nothing they compute can overflow, and write to the scratch column.
    All that varies from call to call is in `control` `[W + 3]`: token ids, lo, hi and the first position.
    """

    def __init__(self, model: "DecoderModel", width: int, num_columns: int) -> None:
        self.model, self.width = model, width
        self.cache = model.new_cache(num_columns)
        device, dtype = model.device, model.dtype
        self.hidden = torch.zeros(width, model.width, dtype=dtype, device=device)
        self.logits = torch.zeros(width, model.vocab_size, dtype=dtype, device=device)
        self.control = torch.zeros(width + 3, dtype=torch.long, device=device)
        self._slots = torch.arange(width, device=device)
        self._columns = torch.arange(num_columns, device=device)
        self._repeats = model.shape.num_heads // model.shape.num_kv_heads
        self._host = torch.zeros(width + 3, dtype=torch.long, pin_memory=device.type == "cuda")

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        shape = (self.width, self.cache.num_columns)
        if self.model.kernels == "compile" and shape not in self.model.compiled_shapes:
            self.segment(0, 1)  # all layers are alike, and no slot takes part
            self.model.compiled_shapes.add(shape)

    def prefill(self, prompt_ids: list[int]) -> Tensor:
        return self.model.prefill(torch.tensor(prompt_ids, device=self.model.device), self.cache)

    def begin(self, first_position: int) -> None:
        self._host[-1] = first_position

    def put(self, slot: int, token_ids: list[int]) -> None:
        self._host[slot : slot + len(token_ids)] = torch.tensor(token_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self._host[-3], self._host[-2] = lo, hi
        self.control.copy_(self._host, non_blocking=True)
        self.segment(start, stop)

    def segment(self, start: int, stop: int) -> None:
        """Layers [start, stop) on `hidden`, in place, as `control` says; before layer 1 the tokens are embedded."""
        lo, hi, first_position = self.control[-3], self.control[-2], self.control[-1]
        idle = (self._slots < lo) | (self._slots >= hi)
        # rows past the cache are clamped to the scratch column; they never take part
        positions = (first_position + self._slots).clamp(max=self.cache.scratch)
        columns = positions.masked_fill(idle, self.cache.scratch)
        cos, sin = self.model.rotary
        angles = positions.clamp(max=len(cos) - 1)  # S may be longer than the context
        rotary = (cos[angles][:, None], sin[angles][:, None])
        mask = torch.zeros_like(self._columns, dtype=self.hidden.dtype).repeat(self.width, 1)
        mask = mask.masked_fill(self._columns > positions[:, None], float("-inf")).repeat(self._repeats, 1)
        idle = idle[:, None]
        entering = self.model.embed(self.control[: self.width]) if start == 0 else self.hidden
        out = entering.masked_fill(idle, 0.0)
        for idx in range(start, stop):
            keys, values = self.cache.layer(idx)
            weights = self.model.layers[idx]
            out = self.model.layer_step(weights, self.model.shape, out, rotary, columns, mask, keys, values)
        self.hidden.copy_(torch.where(idle, self.hidden, out))

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        return run_probe_test(self, segment, test, first_tested)

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        both = self.proposals(head)[:, lo:hi].tolist()
        return [(int(token_id), probability) for token_id, probability in zip(*both, strict=True)]

    def proposals(self, head: Head) -> Tensor:
        """Token ids and probabilities of all W rows, `[2, W]` float64, which holds both exactly."""
        model = self.model
        token_ids, _, probabilities = top1(head_step(head, model.norm, model.shape.eps, self.hidden), head.token_ids)
        return torch.stack((token_ids.double(), probabilities.double()))

    def probe(self, gate: Gate, slot: int) -> float:
        return float(self.chances(gate)[slot])

    def chances(self, gate: Gate) -> Tensor:
        """What `gate` gives for all W rows, `[W]` float32."""
        return gate_step(gate, self.model.norm, self.model.shape.eps, self.hidden)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        token_ids, tops = self.verdicts()[:, lo:hi].tolist()
        return [int(token_id) for token_id in token_ids], tops

    def verdicts(self) -> Tensor:
        """Fills `logits`; next tokens and their logits of all W rows, `[2, W]` float64."""
        model = self.model
        self.logits.copy_(head_step(model.head, model.norm, model.shape.eps, self.hidden))
        tops, token_ids = self.logits.max(dim=-1)
        return torch.stack((token_ids.double(), tops.double()))
