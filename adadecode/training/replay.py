"""Runs finished outputs through the frozen base again: hidden states at the exits, and what heads would draft there.

Shapes: B sequences of a batch, T its padded length, N positions that predict an output token, E exits, d model width,
V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.training.outputs import GreedyOutput

GAMMAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)


class BasePass(NamedTuple):
    """What the base computes at the N positions that predict output tokens."""

    hidden: list[Tensor]  # E of [N, d], before the final norm
    final_logits: Tensor  # [N, V]


def pack(outputs: list[GreedyOutput], batch_tokens: int) -> list[list[GreedyOutput]]:
    """`outputs` by length, in batches of at most `batch_tokens` tokens with their padding, and at least one output."""
    batches: list[list[GreedyOutput]] = []
    for output in sorted(outputs, key=_len):
        if not batches or _len(output) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(output)
    return batches


@torch.no_grad()
def run_base(model: DecoderModel, batch: list[GreedyOutput], exits: tuple[int, ...]) -> BasePass:
    """One pass of the base over `batch`, its sequences padded on the right, where causal attention never looks."""
    token_ids = torch.zeros(len(batch), max(map(_len, batch)), dtype=torch.long)
    predicts = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, (prompt_ids, output_ids) in enumerate(batch):
        stop = len(prompt_ids) + len(output_ids) - 1  # the last output token is predicted, never fed
        token_ids[row, :stop] = torch.tensor(prompt_ids + output_ids[:-1])
        predicts[row, len(prompt_ids) - 1 : stop] = True
    predicts = predicts.to(model.device)
    base: Any = model.lm.model(token_ids.to(model.device), use_cache=False, output_hidden_states=True)
    # hidden_states[e] has passed e layers; only the entry of layer L, which is last_hidden_state, is normalised too.
    hidden = [base.hidden_states[e][predicts] for e in exits]
    return BasePass(hidden, model.lm.lm_head(base.last_hidden_state[predicts]))


@torch.no_grad()
def measure(model: DecoderModel, heads: ExitHeads, outputs: list[GreedyOutput], batch_tokens: int) -> dict[str, Any]:
    """What `heads` would do on `outputs`, as plain values for `HeadFacts.training`.

    Per exit: `agreement`, the share of positions whose head has the final layer's argmax, and `held_out_kl` in nats.
    `gamma_table`: per exit and gamma, the share of positions drafted and, of those, the share that agree (None when
    none is drafted). `oracle_layers_per_token`: the mean over positions of the first exit that agrees, else L. Exits
    that are keys are strings, as JSON has them.
    """
    agrees, confidences, final_confidences, divergences = [], [], [], []
    for batch in pack(outputs, batch_tokens):
        base = run_base(model, batch, heads.exits)
        final = base.final_logits.float().log_softmax(dim=-1)
        top, token_ids = final.max(dim=-1)
        final_confidences.append(top.exp())
        logits = [heads.logits(e, hidden).float() for e, hidden in zip(heads.exits, base.hidden, strict=True)]
        proposed = [z.max(dim=-1) for z in logits]
        agrees.append(torch.stack([p.indices == token_ids for p in proposed]))
        confidences.append(
            torch.stack([(p.values - z.logsumexp(dim=-1)).exp() for p, z in zip(proposed, logits, strict=True)])
        )
        divergences.append(torch.stack([(final.exp() * (final - z.log_softmax(-1))).sum(-1) for z in logits]))
    agree = torch.cat(agrees, dim=1).cpu()  # [E, N]
    confidence = torch.cat(confidences, dim=1).double().cpu()  # [E, N], compared as the engine compares it
    depths = torch.tensor([*heads.exits, model.num_layers])
    first_agreeing = torch.cat([agree, torch.ones_like(agree[:1])]).int().argmax(dim=0)
    kl = torch.cat(divergences, dim=1).double().mean(dim=1).tolist()
    return {
        "num_held_out_tokens": agree.shape[1],
        "agreement": dict(zip(map(str, heads.exits), agree.double().mean(dim=1).tolist(), strict=True)),
        "held_out_kl": dict(zip(map(str, heads.exits), kl, strict=True)),
        "gamma_table": [
            _table_row(exit_layer, gamma, agree[i], confidence[i] > gamma)
            for i, exit_layer in enumerate(heads.exits)
            for gamma in GAMMAS
        ],
        "mean_top1_probability": torch.cat(final_confidences).double().mean().item(),
        "oracle_layers_per_token": depths[first_agreeing].double().mean().item(),
    }


def _table_row(exit_layer: int, gamma: float, agree: Tensor, drafted: Tensor) -> dict[str, float | None]:
    num_drafted = int(drafted.sum())
    return {
        "exit": exit_layer,
        "gamma": gamma,
        "draft_rate": num_drafted / len(drafted),
        "precision": int((agree & drafted).sum()) / num_drafted if num_drafted else None,
    }


def _len(output: GreedyOutput) -> int:
    """Tokens fed to the base: all but the last output token."""
    return len(output.prompt_ids) + len(output.output_ids) - 1
