"""Medusa heads after training: made chances, measured on held-out outputs.

Shapes: K heads, N positions that predict an output token, S tokens of the shortlist.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adadecode.errors import UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.medusa_heads import MedusaHeads, MedusaTensors
from adadecode.training.base_pass import GAMMAS, run_base, shifted
from adadecode.training.calibrate import LEAST_POSITIONS, MOST_LOGITS, fit_temperature
from adadecode.training.distill import Distillation
from adadecode.training.outputs import GreedyOutput
from adadecode.training.stream import OutputStream


class Told(NamedTuple):
    """Held-out positions: normed states `[N, d]`, and per head which of them see so far `[N]` and the tokens there."""

    states: Tensor
    sees: list[Tensor]
    token_ids: list[Tensor]


def check_outputs_reach(stream: OutputStream, ahead: int) -> None:
    """Raises UsageError unless a head can look `ahead` in some output to train on and in some held-out one."""
    held_out = (output for batch in stream.held_out_batches() for output in batch)
    for outputs, purpose in ((stream.train_outputs(), "to train on"), (held_out, "held out")):
        if not any(len(output.output_ids) > ahead for output in outputs):
            raise UsageError(
                f"--ahead {ahead}: no output {purpose} is longer than that; give a lower --ahead, or more prompts. What is "
                "stored stays"
            )


@torch.no_grad()
def measured_medusa(run: Distillation, token_ids: Tensor) -> tuple[MedusaTensors, dict[str, Any]]:
    """The heads that `run` trained over the shortlist `token_ids` `[S]`, and what `HeadFacts.training` says of them.

    `agreement`, `held_out_kl` and `gamma_table` are as exit heads have them, by how many tokens ahead a head looks: of the
    held-out positions from which it sees no further than the end of the output.
    """
    base, stream = run.model, run.stream
    residuals = torch.stack([head.parts[0].detach() for head in run.heads])
    tensors = MedusaTensors(residuals, token_ids, torch.ones(len(residuals)))
    temperatures = fit_medusa_temperatures(base, tensors, stream.held_out_batches())
    tensors = replace(tensors, temperatures=torch.tensor(temperatures))
    last = {point["exit"]: point for point in run.points if point["split"] == "held_out"}
    report = {
        "num_held_out_tokens": sum(len(output.output_ids) for batch in stream.held_out_batches() for output in batch),
        "agreement": {str(ahead): last[ahead]["agreement"] for ahead in run.exits},
        "held_out_kl": {str(ahead): last[ahead]["kl"] for ahead in run.exits},
        "gamma_table": gamma_table(base, tensors.on(base), stream.held_out_batches()),
        "temperatures": dict(zip(map(str, run.exits), temperatures, strict=True)),
    }
    return tensors, report


def fit_medusa_temperatures(
    model: DecoderModel, tensors: MedusaTensors, batches: Iterable[list[GreedyOutput]]
) -> list[float]:
    """The temperature of each head in `tensors`, fitted on the first positions of `batches`; 1 where there are too few."""
    heads = tensors.on(model)
    told = held_out_states(model, batches, heads.num_heads, MOST_LOGITS // len(heads.token_ids))
    found: list[float] = []
    for idx, known in enumerate(told.token_ids):
        logits = heads.logits(idx, told.states[told.sees[idx]]).float()
        agrees = heads.token_ids[logits.argmax(dim=-1)] == known
        found.append(fit_temperature(logits, agrees.float()) if len(agrees) >= LEAST_POSITIONS else 1.0)
    return found


def gamma_table(
    model: DecoderModel, heads: MedusaHeads, batches: Iterable[list[GreedyOutput]]
) -> list[dict[str, float | None]]:
    """Per head, as `exit`, and gamma: the share of its positions in `batches` drafted and, of those, the share right."""
    num_told, num_drafted, num_right = Counter[int](), Counter[tuple[int, float]](), Counter[tuple[int, float]]()
    for batch in batches:
        told = held_out_states(model, [batch], heads.num_heads, 0)
        for idx, known in enumerate(told.token_ids):
            logits = heads.logits(idx, told.states[told.sees[idx]]).float() / heads.temperatures[idx]
            agrees = heads.token_ids[logits.argmax(dim=-1)] == known
            confidence = logits.softmax(dim=-1).max(dim=-1).values
            num_told[idx] += len(known)
            for gamma in GAMMAS:
                drafted = confidence > gamma
                num_drafted[idx, gamma] += int(drafted.sum())
                num_right[idx, gamma] += int((drafted & agrees).sum())
    return [
        {
            "exit": idx + 1,
            "gamma": gamma,
            "draft_rate": num_drafted[idx, gamma] / num_told[idx],
            "precision": num_right[idx, gamma] / num_drafted[idx, gamma] if num_drafted[idx, gamma] else None,
        }
        for idx in range(heads.num_heads)
        for gamma in GAMMAS
    ]


def held_out_states(model: DecoderModel, batches: Iterable[list[GreedyOutput]], num_heads: int, most: int) -> Told:
    """The first positions of `batches`, at most about `most`, with what each of `num_heads` heads should tell there."""
    states: list[Tensor] = []
    sees: list[list[Tensor]] = [[] for _ in range(num_heads)]
    token_ids: list[list[Tensor]] = [[] for _ in range(num_heads)]
    num_positions = 0
    for batch in batches:
        base = run_base(model, batch, (model.num_layers,))
        states.append(model.final_norm(base.hidden[0][base.predicts]))
        best = base.final_logits.argmax(dim=-1)
        for idx in range(num_heads):
            sees[idx].append((base.predicts & shifted(base.predicts, -idx - 1))[base.predicts])
            token_ids[idx].append(best[(base.predicts & shifted(base.predicts, idx + 1))[base.predicts]])
        num_positions += len(best)
        if num_positions >= most:
            break
    return Told(
        torch.cat(states), [torch.cat(of_head) for of_head in sees], [torch.cat(of_head) for of_head in token_ids]
    )
