"""Decode steps that pass a model's own layers, borrowed from the library it was loaded with.

Shapes: W rows, d model width, S cache columns, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from adadecode.kernels.arithmetic import attention_by
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.step import check_token_ids
from adadecode.kernels.weights import Borrowed, Calls, Weights

PROMPT_ROWS = 256  # of a prompt that pass the layers at once; of layers with experts as many as a step has


class BorrowedStep(EagerStep):
    """A decode step of a model's own layers at static shapes: every call computes all W rows.

    Rows that take no part enter a layer as zeros, as in an eager step, and write to the scratch column.
    """

    def __init__(
        self, weights: Weights, borrowed: Borrowed, width: int, cache: KVCache, attention: SDPBackend | None = None
    ) -> None:
        super().__init__(weights, None, width, cache, attention=attention)
        self._borrowed = borrowed
        self._calls: tuple[int, Calls] | None = None  # of the position of slot 0

    def prompt_logits(self, prompt_ids: list[int]) -> Tensor:
        check_token_ids(prompt_ids, self.weights.vocab_size)
        token_ids = torch.tensor(prompt_ids, device=self.hidden.device)
        most = self.width if self._borrowed.has_experts else PROMPT_ROWS
        with attention_by(self._attention):
            for first in range(0, len(prompt_ids), most):
                block = token_ids[first : first + most]
                positions = torch.arange(first, first + len(block), device=block.device)
                calls = self._borrowed.calls(block, positions, positions, self.cache)
                self.hidden[0] = self._borrowed.run(calls, calls.entering, 0, self.weights.num_layers)[-1]
        self._calls = None
        return self._borrowed.logits(self.hidden)[0]

    def segment(self, start: int, stop: int) -> None:
        idle = self._idle()
        first = int(self._host[-1])
        if start == 0 or self._calls is None or self._calls[0] != first:
            positions = self._positions()
            columns = positions.masked_fill(idle, self.cache.scratch)
            calls = self._borrowed.calls(self.control[: self.width], positions, columns, self.cache)
        else:  # nobody's position is another, but others may be idle
            calls = self._calls[1].at(self._positions().masked_fill(idle, self.cache.scratch))
        self._calls = first, calls
        out = (calls.entering if start == 0 else self.hidden).masked_fill(idle[:, None], 0.0)
        out = self._borrowed.run(calls, out, start, stop)
        self.hidden.copy_(torch.where(idle[:, None], self.hidden, out))

    def _idle(self) -> Tensor:
        lo, hi = self.control[-3], self.control[-2]
        return (self._slots < lo) | (self._slots >= hi)

    def _positions(self) -> Tensor:
        return (self.control[-1] + self._slots).clamp(max=self.cache.scratch)

    def final_logits(self) -> Tensor:
        return self._borrowed.logits(self.hidden)
