"""Makes exit tests cheap: heads over a shortlist of frequent tokens, and gates that skip hopeless tests.

The final verification uses the full head, so nothing here can change an output. Shapes: N positions, d model width,
V vocabulary, K tokens of the shortlist.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import HeadTensors, Shortlist
from adadecode.training.outputs import GreedyOutput
from adadecode.training.replay import pack, run_base

LONGEST_SHORTLIST = 32_768
WEIGHT_DECAY = 1e-4
FIT_STEPS = 100


def default_shortlist_len(vocab_size: int) -> int:
    """K: a quarter of the vocabulary, at most 32 Ki tokens (FR-Spec's size for vocabularies of 128 Ki)."""
    return min(LONGEST_SHORTLIST, max(1, vocab_size // 4))


@torch.no_grad()
def make_shortlist(
    model: DecoderModel, transforms: dict[int, Tensor], outputs: list[GreedyOutput], shortlist_len: int
) -> Shortlist:
    """Heads over the most frequent tokens of the model's own `outputs`, E*[token_ids] . T(e), ids ascending."""
    counts = Counter(token_id for output in outputs for token_id in output.output_ids)
    # tokens that never occurred fill up by id: many tokenizers give frequent tokens low ids
    ranked = sorted(range(model.vocab_size), key=lambda token_id: (-counts[token_id], token_id))
    token_ids = torch.tensor(sorted(ranked[:shortlist_len]), device=model.device)
    rows = model.lm.lm_head.weight[token_ids].float()
    return Shortlist(token_ids, {e: rows @ transform.to(rows) for e, transform in transforms.items()})


def fit_gates(
    model: DecoderModel, shortlist: Shortlist, outputs: list[GreedyOutput], batch_tokens: int
) -> dict[int, Tensor]:
    """Per exit a logistic regression `[d + 1]` on the normed hidden state: will the shortlist's top-1 be right?"""
    exits = tuple(shortlist.matrices)
    inputs: dict[int, list[Tensor]] = {e: [] for e in exits}
    labels: dict[int, list[Tensor]] = {e: [] for e in exits}
    for batch in pack(outputs, batch_tokens):
        base = run_base(model, batch, exits)
        final_ids = base.final_logits.argmax(dim=-1)
        for exit_layer, hidden in zip(exits, base.hidden, strict=True):
            normed = model.final_norm(hidden).float()
            best = (normed @ shortlist.matrices[exit_layer].T).argmax(dim=-1)
            inputs[exit_layer].append(normed)
            labels[exit_layer].append((shortlist.token_ids[best] == final_ids).float())
    return {e: fit_logistic(torch.cat(inputs[e]), torch.cat(labels[e])) for e in exits}


def fit_logistic(inputs: Tensor, labels: Tensor) -> Tensor:
    """Weights and bias `[d + 1]` of a logistic regression of `labels` `[N]` in {0, 1} on `inputs` `[N, d]`."""
    weights = nn.Parameter(torch.zeros(inputs.shape[1] + 1, device=inputs.device))
    optimizer = torch.optim.LBFGS([weights], max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weights[:-1] + weights[-1]
        value = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        value = value + WEIGHT_DECAY * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def reduce_heads(
    model: DecoderModel,
    transforms: dict[int, Tensor],
    outputs: list[GreedyOutput],
    shortlist_len: int,
    batch_tokens: int,
) -> HeadTensors:
    """`transforms` with a shortlist of `shortlist_len` tokens and gates, both fitted on `outputs`."""
    shortlist = make_shortlist(model, transforms, outputs, shortlist_len)
    return HeadTensors(transforms, shortlist, fit_gates(model, shortlist, outputs, batch_tokens))
