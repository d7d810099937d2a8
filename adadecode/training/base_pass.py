"""One pass of finished outputs through the frozen base: hidden states at the exits, and what heads would draft there.

Shapes: B sequences of a batch, T its padded length, N positions that predict an output token, E exits, d model width,
V vocabulary.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.training.kinds import TrainedHead
from adadecode.training.loss import kl_sum, make_target
from adadecode.training.outputs import GreedyOutput
from adadecode.training.stream import num_fed

GAMMAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)


class BasePass(NamedTuple):
    """What the base computes, of which N positions predict output tokens."""

    token_ids: Tensor  # [B, T], what was fed
    hidden: list[Tensor]  # E of [B, T, d], before the final norm
    predicts: Tensor  # [B, T], True at the N positions
    final_logits: Tensor  # [N, V]

    def read_by(self, model: DecoderModel, idx: int, head: TrainedHead) -> Tensor:
        """The normed rows `[M, d]` that `head` makes logits of, at the exit `idx`.

        M is N, less the positions from which a head that looks ahead sees past the end of the output.
        """
        sees = self.predicts
        if head.ahead:
            sees = sees & shifted(sees, -head.ahead)
        return model.final_norm(head.enter(self.hidden[idx])[sees])

    def told_by(self, head: TrainedHead) -> Tensor:
        """Which of the N positions predict what `head` tells `[N]`: all, or from as many on as it looks ahead."""
        return (self.predicts & shifted(self.predicts, head.ahead))[self.predicts]


def shifted(predicts: Tensor, places: int) -> Tensor:
    """`predicts` `[B, T]` moved to the right by so many places, to the left where negative, False filling up."""
    moved = torch.zeros_like(predicts)
    length = predicts.shape[1] - abs(places)
    if length > 0:
        moved[:, max(0, places) :][:, :length] = predicts[:, max(0, -places) :][:, :length]
    return moved


@torch.no_grad()
def run_base(model: DecoderModel, batch: list[GreedyOutput], exits: tuple[int, ...]) -> BasePass:
    """One pass of the base over `batch`, its sequences padded on the right, where causal attention never looks.

    Of the hidden states only those at `exits` are kept.
    """
    token_ids = torch.zeros(len(batch), max(map(num_fed, batch)), dtype=torch.long)
    predicts = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, (prompt_ids, output_ids) in enumerate(batch):
        stop = num_fed(batch[row])  # the last output token is predicted, never fed
        token_ids[row, :stop] = torch.tensor(prompt_ids + output_ids[:-1])
        predicts[row, len(prompt_ids) - 1 : stop] = True
    predicts, token_ids = predicts.to(model.device), token_ids.to(model.device)
    kept: dict[int, Tensor] = {}

    def keep(exit_layer: int, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        kept[exit_layer] = hidden.to(model.device)

    hooks = [
        model.layers[e - 1].register_forward_hook(lambda *call, exit_layer=e: keep(exit_layer, call[-1])) for e in exits
    ]
    try:
        last = model.body(token_ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return BasePass(token_ids, [kept[e] for e in exits], predicts, model.output(last[predicts]))


@torch.no_grad()
def measure(model: DecoderModel, heads: ExitHeads, batches: Iterable[list[GreedyOutput]]) -> dict[str, Any]:
    """What `heads` would do on the outputs in `batches`, as plain values for `HeadFacts.training`.

    Per exit: `agreement`, the share of positions whose head has the final layer's argmax, and `held_out_kl` in nats.
    `gamma_table`: per exit and gamma, the share of positions drafted and, of those, the share that agree (None when
    none is drafted). `oracle_layers_per_token`: the mean over positions of the first exit that agrees, else L. Exits
    that are keys are strings, as JSON has them.
    """
    exits = heads.exits
    num_positions, confidence_sum, layers_sum = 0, 0.0, 0
    num_agree, kl_sums = Counter[int](), dict.fromkeys(exits, 0.0)
    num_drafted, num_right = Counter[tuple[int, float]](), Counter[tuple[int, float]]()
    for batch in batches:
        base = run_base(model, batch, exits)
        target = make_target(base.final_logits, None)
        num_positions += len(target.token_ids)
        confidence_sum += target.log_probs.max(dim=-1).values.exp().double().sum().item()
        layers = torch.full_like(target.token_ids, model.num_layers)
        for exit_layer, hidden in zip(reversed(exits), reversed(base.hidden), strict=True):
            logits = heads.logits(exit_layer, heads.enter(exit_layer, hidden)[base.predicts]).float()
            best = logits.max(dim=-1)
            proposed = best.indices if heads.token_ids is None else heads.token_ids[best.indices]
            agrees = proposed == target.token_ids
            confidence = (best.values - logits.logsumexp(dim=-1)).exp().double()  # as the engine compares it
            layers[agrees] = exit_layer
            num_agree[exit_layer] += int(agrees.sum())
            kl_sums[exit_layer] += kl_sum(target, logits, heads.token_ids).item()
            for gamma in GAMMAS:
                drafted = confidence > gamma
                num_drafted[exit_layer, gamma] += int(drafted.sum())
                num_right[exit_layer, gamma] += int((drafted & agrees).sum())
        layers_sum += int(layers.sum())
    return {
        "num_held_out_tokens": num_positions,
        "agreement": {str(e): num_agree[e] / num_positions for e in exits},
        "held_out_kl": {str(e): kl_sums[e] / num_positions for e in exits},
        "gamma_table": [
            {
                "exit": e,
                "gamma": gamma,
                "draft_rate": num_drafted[e, gamma] / num_positions,
                "precision": num_right[e, gamma] / num_drafted[e, gamma] if num_drafted[e, gamma] else None,
            }
            for e in exits
            for gamma in GAMMAS
        ],
        "mean_top1_probability": confidence_sum / num_positions,
        "oracle_layers_per_token": layers_sum / num_positions,
    }
