"""Makes confidences chances: one temperature per exit, by which a head agrees with the last layer as often as it says.

Guo et al. 2017 (arXiv 1706.04599) divide logits by a temperature so that the likeliest class is right as often as its
probability says. Shapes: N positions, d model width, K tokens of the shortlist.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from adadecode.model.decoder import DecoderModel
from adadecode.model.head_tensors import HeadTensors
from adadecode.training.base_pass import run_base
from adadecode.training.outputs import GreedyOutput

COLDEST, HOTTEST = 0.2, 10.0
TOLERANCE = 1e-3  # of a temperature's logarithm
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
LEAST_POSITIONS = 256  # fewer say little of a temperature
MOST_LOGITS = 2**25  # N K of one exit, 4 bytes each


@torch.no_grad()
def fit_temperatures(
    model: DecoderModel, tensors: HeadTensors, batches: Iterable[list[GreedyOutput]]
) -> dict[int, float]:
    """Per exit the temperature of the heads in `tensors` over their shortlist, fitted on the first positions of `batches`.

    None where there are too few. The outputs should be ones that the heads were not trained on.
    """
    heads = tensors.on(model, "shortlist")
    tested = {e: test.head for e, test in zip(heads.exits, heads.tests, strict=True)}
    most = MOST_LOGITS // max(head.matrices[-1].shape[0] for head in tested.values())
    read: dict[int, list[Tensor]] = {e: [] for e in tested}
    final_ids: list[Tensor] = []
    num_wanted = most
    for batch in batches:
        base = run_base(model, batch, heads.exits)
        final_ids.append(base.final_logits.argmax(dim=-1)[:num_wanted])
        for exit_layer, hidden in zip(tested, base.hidden, strict=True):
            entered = heads.enter(exit_layer, hidden)[base.predicts]
            read[exit_layer].append(model.final_norm(entered[:num_wanted]))
        num_wanted -= len(final_ids[-1])
        if num_wanted == 0:
            break
    if most - num_wanted < LEAST_POSITIONS:
        return {}
    right = torch.cat(final_ids)
    found: dict[int, float] = {}
    for exit_layer, head in tested.items():
        logits = torch.cat(read.pop(exit_layer))
        for matrix in head.matrices:
            logits = linear(logits, matrix)
        logits = model.finished(logits)
        proposed = logits.argmax(dim=-1)
        proposed = proposed if head.token_ids is None else head.token_ids[proposed]
        found[exit_layer] = fit_temperature(logits.float(), (proposed == right).float())
    return found


def fit_temperature(logits: Tensor, agrees: Tensor) -> float:
    """The temperature of `logits` `[N, K]` with the least binary log loss of the top-1's probability for `agrees` `[N]`."""
    top, top_ids = logits.max(dim=-1, keepdim=True)
    others = logits.scatter(1, top_ids, -torch.inf) - top

    def loss(log_temperature: float) -> float:
        # the log odds of the most likely token are its logit less the log-sum-exp of all others
        log_odds = -(others * math.exp(-log_temperature)).logsumexp(dim=-1)
        return float(binary_cross_entropy_with_logits(log_odds, agrees))

    return math.exp(lowest(loss, math.log(COLDEST), math.log(HOTTEST)))


def lowest(function: Callable[[float], float], lo: float, hi: float) -> float:
    """Where in [lo, hi] `function`, which falls and then rises, is lowest: by golden sections, to TOLERANCE."""
    inner = [hi - GOLDEN * (hi - lo), lo + GOLDEN * (hi - lo)]
    values = [function(x) for x in inner]
    while hi - lo > TOLERANCE:
        if values[0] < values[1]:
            hi = inner[1]
            inner = [hi - GOLDEN * (hi - lo), inner[0]]
            values = [function(inner[0]), values[0]]
        else:
            lo = inner[0]
            inner = [inner[1], lo + GOLDEN * (hi - lo)]
            values = [values[1], function(inner[1])]
    return (lo + hi) / 2
