"""What is trained at an exit: one small parametrisation per kind of head.

Shapes: B sequences of T tokens, N of their positions, d model width, V vocabulary, K tokens, r rank. Trained tensors are
float32; products run in the base's dtype.
"""

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from adadecode.errors import UsageError
from adadecode.kernels.weights import LayerWeights
from adadecode.model.decoder import DecoderModel
from adadecode.model.head_tensors import merged
from adadecode.model.parts import read_layer
from adadecode.settings import TrainConfig

DEFAULT_RANK = 32


class TrainedHead(nn.Module, ABC):
    """A head in training; here what the kinds without a block and with logits over the whole vocabulary have in common.

    `logits` are of normed rows `[N, d]` of what `enter` gives, and over the tokens `token_ids` where it is not None;
    `parts` are its tensors as they are saved; `rows` is the matrix `[K, d]` of its logits of K tokens.
    """

    token_ids: Tensor | None = None
    ahead = 0  # places after the next token of the one it tells

    def enter(self, hidden: Tensor) -> Tensor:
        """What the head reads `[B, T, d]` of the hidden states `[B, T, d]` at its exit."""
        return hidden

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return ()

    @property
    def block(self) -> LayerWeights | None:
        """The layer that `enter` runs, as it is saved."""
        return None

    @abstractmethod
    def logits(self, normed: Tensor) -> Tensor:
        """Logits `[N, V]` or, over `token_ids`, `[N, K]` of rows `[N, d]`."""

    @abstractmethod
    def rows(self, token_ids: Tensor) -> Tensor:
        """The matrix `[K, d]` of the logits of `token_ids` `[K]`, float32."""


class TransformHead(TrainedHead):
    """The paper's: E* . T, T starting as the identity, so as the model's own norm and LM head."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self._model = model
        self.transform = nn.Parameter(torch.eye(model.width, device=model.device))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.transform,)

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.output(linear(normed, self.transform.to(normed.dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids) @ self.transform


class LowRankHead(TrainedHead):
    """E* . (I + U V): 2 d r numbers instead of d d; U starts at zero, V at random."""

    def __init__(self, model: DecoderModel, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self._model = model
        self.u = nn.Parameter(torch.zeros(model.width, rank, device=model.device))
        start = torch.randn(rank, model.width, generator=generator) * model.width**-0.5
        self.v = nn.Parameter(start.to(model.device))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.u, self.v)

    def logits(self, normed: Tensor) -> Tensor:
        added = linear(linear(normed, self.v.to(normed.dtype)), self.u.to(normed.dtype))
        return self._model.output(normed + added)

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids) @ merged(self.u, self.v)


class FullHead(TrainedHead):
    """A matrix `[V, d]` of its own, which starts as the LM head."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self._model = model
        self.matrix = nn.Parameter(model.weights.head.matrices[0].detach().float().clone())

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.finished(linear(normed, self.matrix.to(normed.dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        return self.matrix[token_ids]


class ShortlistHead(TrainedHead):
    """A matrix `[K, d]` over the tokens `token_ids` alone, which starts as the LM head's rows."""

    def __init__(self, model: DecoderModel, token_ids: Tensor) -> None:
        super().__init__()
        self._model, self.token_ids = model, token_ids
        self.matrix = nn.Parameter(lm_head_rows(model, token_ids))

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.finished(linear(normed, self.matrix.to(normed.dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        assert token_ids is self.token_ids
        return self.matrix


class OriginalHead(TrainedHead):
    """The model's own norm and LM head; nothing to train."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self._model = model

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.output(normed)

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids)


class BlockHead(TrainedHead):
    """E*[token_ids] . T . norm(block(h)): a layer of its own, with its own keys and values, before a transform head.

    As the adapter of Kangaroo (arXiv 2404.18911), with the MLP. The layer starts as the model's last, T as the identity.
    """

    def __init__(self, model: DecoderModel, token_ids: Tensor) -> None:
        super().__init__()
        if model.weights.borrowed is not None:
            raise UsageError(
                "--kind block: a layer like the model's, which --kernels transformers does not know; use another"
            )
        self._model, self._dtype = model, model.dtype
        self.token_ids = token_ids
        self._token_rows = lm_head_rows(model, token_ids)
        self.layer = copy.deepcopy(model.body.layers[-1]).to(model.device).float().requires_grad_(True)
        self.transform = nn.Parameter(torch.eye(model.width, device=model.device))

    def enter(self, hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        with torch.autocast(hidden.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model.run_like_last(self.layer, hidden)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.transform,)

    @property
    def block(self) -> LayerWeights:
        return read_layer(self._model.lm, self.layer)

    def logits(self, normed: Tensor) -> Tensor:
        dtype = self._dtype
        turned = linear(normed.to(dtype), self.transform.to(dtype))
        return self._model.finished(linear(turned, self._token_rows.to(dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        return self._token_rows @ self.transform


class MedusaHead(TrainedHead):
    """E*[token_ids] . (r + SiLU(W r)) of the last layer's normed state r, for the token `ahead` places after the next.

    As Medusa's (arXiv 2401.10774), W starting as zero; all heads share the model's own LM head.
    """

    def __init__(self, model: DecoderModel, token_ids: Tensor, ahead: int) -> None:
        super().__init__()
        self._model, self.token_ids, self.ahead = model, token_ids, ahead
        self._token_rows = lm_head_rows(model, token_ids)
        self.residual = nn.Parameter(torch.zeros(model.width, model.width, device=model.device))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.residual,)

    def logits(self, normed: Tensor) -> Tensor:
        entered = normed + silu(linear(normed, self.residual.to(normed.dtype)))
        return self._model.finished(linear(entered, self._token_rows.to(normed.dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        raise AssertionError("no matrix alone gives its logits")


def new_heads(model: DecoderModel, exits: tuple[int, ...], config: TrainConfig, shortlist: Tensor) -> list[TrainedHead]:
    """An untrained head of `config.kind` for each exit; kinds `shortlist`, `block` and `medusa` are over `shortlist` `[K]`.

    Of kind `medusa` `exits` are how many tokens ahead each looks.
    """
    generator = torch.Generator().manual_seed(config.seed)
    heads: list[TrainedHead] = []
    for idx in exits:
        match config.kind:
            case "transform":
                heads.append(TransformHead(model))
            case "low-rank":
                heads.append(LowRankHead(model, config.rank or DEFAULT_RANK, generator))
            case "full":
                heads.append(FullHead(model))
            case "shortlist":
                heads.append(ShortlistHead(model, shortlist))
            case "block":
                heads.append(BlockHead(model, shortlist))
            case "original":
                heads.append(OriginalHead(model))
            case "medusa":
                heads.append(MedusaHead(model, shortlist, idx))
    return heads


def lm_head_rows(model: DecoderModel, token_ids: Tensor) -> Tensor:
    """The LM head's rows of `token_ids`, `[K, d]` float32, a copy."""
    return model.weights.head.matrices[0].detach()[token_ids].float()
