"""How far a head is from the final layer: KL over the whole vocabulary, its most likely tokens, or a shortlist.

Shapes: N positions that predict an output token, V vocabulary, K tokens that count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_REST = 1e-7  # of a probability in float32


@dataclass(frozen=True)
class Target:
    """The final layer's distribution at N positions, float32: all of it, or of the tokens that count for its loss."""

    token_ids: Tensor  # [N], the most likely
    log_probs: Tensor  # [N, V], or [N, K] of the most likely `top_ids`
    top_ids: Tensor | None  # [N, K]

    def at(self, kept: Tensor) -> "Target":
        """The target at those of the N positions where `kept` `[N]` is True."""
        top_ids = None if self.top_ids is None else self.top_ids[kept]
        return Target(self.token_ids[kept], self.log_probs[kept], top_ids)


@torch.no_grad()
def make_target(final_logits: Tensor, top_k: int | None) -> Target:
    """The target of logits `[N, V]`; with `top_k` nothing of size N x V is kept."""
    if top_k is None or top_k >= final_logits.shape[-1]:
        log_probs = final_logits.float().log_softmax(dim=-1)
        return Target(log_probs.argmax(dim=-1), log_probs, None)
    top, top_ids = final_logits.topk(top_k, dim=-1)
    log_probs = top.float() - _logsumexp(final_logits)
    return Target(final_logits.argmax(dim=-1), log_probs, top_ids)


def kl_sum(target: Target, logits: Tensor, token_ids: Tensor | None) -> Tensor:
    """KL(final layer || head) in nats, summed over the N positions; `logits` are the head's.

    Over the whole vocabulary; or over the target's K most likely tokens and one bucket for the rest, which is never more;
    or, when the logits are over `token_ids` alone, between the distributions given one of these tokens, weighted by the
    final layer's probability of that.
    """
    if token_ids is not None:
        return _weighted_kl(target.log_probs[:, token_ids], logits.float().log_softmax(dim=-1))
    if target.top_ids is None:
        return _kl(target.log_probs, logits.float().log_softmax(dim=-1))
    head = logits.gather(-1, target.top_ids).float() - _logsumexp(logits)
    rest = 1.0 - target.log_probs.exp().sum(dim=-1)
    head_rest = 1.0 - head.exp().sum(dim=-1)
    rest = rest.clamp(min=0.0)
    rest_kl = torch.xlogy(rest, rest) - rest * head_rest.clamp(min=SMALLEST_REST).log()
    return _kl(target.log_probs, head) + rest_kl.sum()


def argmax_loss_sum(target: Target, logits: Tensor, token_ids: Tensor | None) -> Tensor:
    """Cross entropy in nats with the final layer's most likely token, which is what a greedy draft must be, summed.

    A token that the head's logits, over `token_ids`, do not have counts nothing.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    if token_ids is None:
        return -log_probs.gather(-1, target.token_ids[:, None]).sum()
    idx = torch.searchsorted(token_ids, target.token_ids).clamp(max=len(token_ids) - 1)
    is_listed = token_ids[idx] == target.token_ids
    return -(log_probs.gather(-1, idx[:, None])[:, 0] * is_listed).sum()


def acceptance_loss_sum(target: Target, logits: Tensor, token_ids: Tensor | None) -> Tensor:
    """-log of the probability that speculative sampling accepts the head's token, 1 - TV(final layer, head), summed.

    LK loss, arXiv 2602.23881. Over the target's most likely tokens, or the head's `token_ids`, where not all are known.
    """
    probs, log_probs = target.log_probs, logits.float().log_softmax(dim=-1)
    if token_ids is not None:
        probs = probs[:, token_ids]
    elif target.top_ids is not None:
        log_probs = log_probs.gather(-1, target.top_ids)
    accepted = torch.minimum(probs.exp(), log_probs.exp()).sum(dim=-1)
    return -accepted.clamp(min=SMALLEST_REST).log().sum()


LOSSES = {"argmax": argmax_loss_sum, "acceptance": acceptance_loss_sum}


def _kl(log_probs: Tensor, head: Tensor) -> Tensor:
    # Log probabilities of -inf have weight 0.
    probs = log_probs.exp().flatten()
    return probs @ log_probs.nan_to_num(neginf=0.0).flatten() - probs @ head.flatten()


def _weighted_kl(log_probs: Tensor, head: Tensor) -> Tensor:
    mass = log_probs.logsumexp(dim=-1, keepdim=True)
    return _kl(log_probs, head) - (mass.exp() * mass).sum()


def _logsumexp(logits: Tensor) -> Tensor:
    return logits.float().logsumexp(dim=-1, keepdim=True)
