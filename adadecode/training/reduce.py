"""Makes exit tests cheap: heads over a shortlist of frequent tokens, and gates that skip hopeless tests.

The final verification uses the full head, so nothing here can change an output. Shapes: N positions, d model width,
V vocabulary, K tokens of the shortlist.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from adadecode.model.decoder import DecoderModel
from adadecode.training.base_pass import run_base
from adadecode.training.kinds import TrainedHead
from adadecode.training.outputs import GreedyOutput

WEIGHT_DECAY = 1e-4
FIT_STEPS = 100
GATE_POSITIONS = 32_768  # d float32 numbers each and per exit


def frequent_tokens(vocab_size: int, outputs: Iterable[GreedyOutput], shortlist_len: int) -> Tensor:
    """The `shortlist_len` most frequent tokens `[K]` of the model's own `outputs`, ids ascending."""
    counts = Counter[int]()
    for output in outputs:
        counts.update(output.output_ids)
    # tokens that never occurred fill up by id: many tokenizers give frequent tokens low ids
    ranked = sorted(range(vocab_size), key=lambda token_id: (-counts[token_id], token_id))
    return torch.tensor(sorted(ranked[:shortlist_len]))


@torch.no_grad()
def fit_gates(
    model: DecoderModel,
    heads: Mapping[int, TrainedHead],
    token_ids: Tensor,
    batches: Iterable[list[GreedyOutput]],
    num_positions: int = GATE_POSITIONS,
) -> dict[int, Tensor]:
    """Per exit a logistic regression `[d + 1]` on the normed hidden state, for its head's top-1 of `token_ids` to be right.

    It is fitted on the first `num_positions` positions of `batches`.
    """
    exits = tuple(heads)
    matrices = {e: head.rows(token_ids) for e, head in heads.items()}
    inputs: dict[int, list[Tensor]] = {e: [] for e in exits}
    labels: dict[int, list[Tensor]] = {e: [] for e in exits}
    num_wanted = num_positions
    for batch in batches:
        base = run_base(model, batch, exits)
        final_ids = base.final_logits.argmax(dim=-1)[:num_wanted]
        for idx, exit_layer in enumerate(exits):
            normed = model.final_norm(base.hidden[idx][base.predicts][:num_wanted]).float()
            read = base.read_by(model, idx, heads[exit_layer])[:num_wanted].float()
            best = (read @ matrices[exit_layer].T).argmax(dim=-1)
            inputs[exit_layer].append(normed.cpu())
            labels[exit_layer].append((token_ids[best] == final_ids).float().cpu())
        num_wanted -= len(final_ids)
        if num_wanted == 0:
            break
    # one exit after the other goes back to the device
    on = model.device
    with torch.enable_grad():
        return {e: fit_logistic(torch.cat(inputs.pop(e)).to(on), torch.cat(labels.pop(e)).to(on)) for e in exits}


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
