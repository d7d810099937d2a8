"""A generation beside vanilla's: the class of its parity, from token ids and logits."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from adadecode.engine.sampling import drawn_margin
from adadecode.engine.tally import Decoded
from adadecode.kernels.sampling import Draw
from adadecode.report.parity import classify, first_difference


def logits_digest(logits: Tensor | None) -> str | None:
    """BLAKE2b-128 of the bytes of logits `[n, V]`; None when they were not recorded."""
    if logits is None:
        return None
    as_bytes = logits.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(as_bytes.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """A method's output beside vanilla's: the parity columns of its row, which the SAMPLES schema explains."""

    parity: str  # exact | near_tie | mismatch
    logits_equal: bool | None
    first_diff_idx: int | None
    vanilla_token_id: int | None
    method_token_id: int | None
    vanilla_margin: float | None
    method_margin: float | None


def compare(vanilla: Decoded, other: Decoded, dtype: str, draw: Draw | None = None) -> Comparison:
    """How `other` differs from `vanilla`, near-ties as `dtype` has them; an output cut short is a mismatch.

    Where `draw` drew both, margins are of the scores whose largest was taken.
    """
    ours, theirs = other.generation, vanilla.generation
    first = first_difference(theirs.output_token_ids, ours.output_token_ids)
    margin = None if first is None else _margin(vanilla.logits, first, draw)
    parity = classify(first, margin, dtype)
    cut_short = first is not None and first >= min(len(ours.output_token_ids), len(theirs.output_token_ids))
    if cut_short or (first is None and ours.finish_reason != theirs.finish_reason):
        parity = "mismatch"
    return Comparison(
        parity=parity,
        logits_equal=_same_bits(vanilla.logits, other.logits),
        first_diff_idx=first,
        vanilla_token_id=_token(theirs.output_token_ids, first),
        method_token_id=_token(ours.output_token_ids, first),
        vanilla_margin=margin,
        method_margin=None if first is None else _margin(other.logits, first, draw),
    )


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool | None:
    if a is None or b is None:
        return None
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _token(token_ids: tuple[int, ...], idx: int | None) -> int | None:
    return None if idx is None or idx >= len(token_ids) else token_ids[idx]


def _margin(logits: Tensor | None, idx: int, draw: Draw | None) -> float | None:
    if logits is None or idx >= len(logits):
        return None
    if draw is not None:
        return drawn_margin(logits[idx], draw, idx)
    top, second = logits[idx].float().topk(2).values.tolist()
    return top - second
