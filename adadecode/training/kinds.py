"""What is trained at an exit: one small parametrisation per kind of head.

Each has `logits` on the normed hidden states `[N, d]`, which are over the tokens `token_ids` where it is not None;
`parts`, its tensors as they are saved; and `rows`, the matrix `[K, d]` of its logits of K tokens. Trained tensors are
float32; products run in the base's dtype. Shapes: d model width, V vocabulary, K tokens, r rank.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import merged
from adadecode.settings import TrainConfig

DEFAULT_RANK = 32


class TransformHead(nn.Module):
    """The paper's: E* . T, T starting as the identity, so as the model's own norm and LM head."""

    token_ids = None

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self._model = model
        self.transform = nn.Parameter(torch.eye(model.width, device=model.device))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.transform,)

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.lm.lm_head(linear(normed, self.transform.to(normed.dtype)))

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids) @ self.transform


class LowRankHead(nn.Module):
    """E* . (I + U V): 2 d r numbers instead of d d; U starts at zero, V at random."""

    token_ids = None

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
        return self._model.lm.lm_head(normed + added)

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids) @ merged(self.u, self.v)


class FullHead(nn.Module):
    """A matrix `[V, d]` of its own, which starts as the LM head."""

    token_ids = None

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.matrix = nn.Parameter(model.lm.lm_head.weight.detach().float().clone())

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def logits(self, normed: Tensor) -> Tensor:
        return linear(normed, self.matrix.to(normed.dtype))

    def rows(self, token_ids: Tensor) -> Tensor:
        return self.matrix[token_ids]


class ShortlistHead(nn.Module):
    """A matrix `[K, d]` over the tokens `token_ids` alone, which starts as the LM head's rows."""

    parts: tuple[Tensor, ...] = ()

    def __init__(self, model: DecoderModel, token_ids: Tensor) -> None:
        super().__init__()
        self.token_ids = token_ids
        self.matrix = nn.Parameter(lm_head_rows(model, token_ids))

    def logits(self, normed: Tensor) -> Tensor:
        return linear(normed, self.matrix.to(normed.dtype))

    def rows(self, token_ids: Tensor) -> Tensor:
        assert token_ids is self.token_ids
        return self.matrix


class OriginalHead(nn.Module):
    """The model's own norm and LM head; nothing to train."""

    token_ids = None
    parts: tuple[Tensor, ...] = ()

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self._model = model

    def logits(self, normed: Tensor) -> Tensor:
        return self._model.lm.lm_head(normed)

    def rows(self, token_ids: Tensor) -> Tensor:
        return lm_head_rows(self._model, token_ids)


TrainedHead = TransformHead | LowRankHead | FullHead | ShortlistHead | OriginalHead


def new_heads(model: DecoderModel, exits: tuple[int, ...], config: TrainConfig, shortlist: Tensor) -> list[TrainedHead]:
    """An untrained head of `config.kind` for each exit; those of kind `shortlist` are over the tokens `shortlist` `[K]`."""
    generator = torch.Generator().manual_seed(config.seed)
    heads: list[TrainedHead] = []
    for _ in exits:
        match config.kind:
            case "transform":
                heads.append(TransformHead(model))
            case "low-rank":
                heads.append(LowRankHead(model, config.rank or DEFAULT_RANK, generator))
            case "full":
                heads.append(FullHead(model))
            case "shortlist":
                heads.append(ShortlistHead(model, shortlist))
            case "original":
                heads.append(OriginalHead(model))
    return heads


def lm_head_rows(model: DecoderModel, token_ids: Tensor) -> Tensor:
    """The LM head's rows of `token_ids`, `[K, d]` float32, a copy."""
    return model.lm.lm_head.weight.detach()[token_ids].float()
