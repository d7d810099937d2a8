"""Greedy generation, vanilla and AdaDecode: one loop, one prefill, one set of clocks and stop rules."""

import time
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from adadecode.engine.policy import VANILLA, Drafter, Policy
from adadecode.engine.state import Round
from adadecode.engine.steps import add_draft, advance, begin_round, check_finite, verify
from adadecode.errors import PromptTooLongError
from adadecode.model.decoder import DecoderModel
from adadecode.model.kv_cache import KVCache
from adadecode.records import Generation


class Decoded(NamedTuple):
    """A generation and, when asked for, the logits `[n, V]` of its n output tokens in the model's dtype."""

    generation: Generation
    logits: Tensor | None


@torch.inference_mode()
def generate(
    model: DecoderModel,
    prompt_ids: list[int],
    *,
    width: int,
    max_new_tokens: int,
    eos_token_ids: Collection[int] | None = None,
    policy: Policy = VANILLA,
    drafter: Drafter | None = None,
    record_logits: bool = False,
) -> Decoded:
    """Greedy continuation of `prompt_ids`: vanilla decoding at `width` rows, or AdaDecode under `policy`.

    Yields exactly `max_new_tokens` tokens unless an EOS (the model's own when `eos_token_ids` is None) or the context
    ends it earlier. For one width the tokens and logits are the same, bit for bit, under every policy. Raises
    PromptTooLongError and NonFiniteLogitsError.
    """
    assert policy.max_drafts < width, (policy, width)
    assert drafter is not None or not policy.exits, policy
    eos = model.eos_token_ids if eos_token_ids is None else eos_token_ids
    limit = min(max_new_tokens, room_for_output(model, len(prompt_ids)))
    cache = model.new_cache(len(prompt_ids) + limit)

    started = clock_ns(model.device)
    first_logits = model.prefill(torch.tensor(prompt_ids, device=model.device), cache)
    top, first_id = first_logits.max(dim=-1)
    output, kept_logits = [int(first_id)], [first_logits[None]] if record_logits else []
    clocks = [clock_ns(model.device)]
    check_finite([float(top)], len(prompt_ids) - 1)

    depths, drafted, accepted = [model.num_layers], Counter[int](), Counter[int]()
    num_rounds = layers_run = 0
    while output[-1] not in eos and len(output) < limit:
        round_ = begin_round(model, cache, output[-1], len(prompt_ids) + len(output) - 1, width)
        max_drafts = min(policy.max_drafts, limit - len(output) - 1)
        layers_run += run_round(model, cache, round_, policy, drafter, max_drafts, eos)
        predicted, num_accepted, logits = verify(model, round_)

        output += [*round_.token_ids[1 : num_accepted + 1], predicted[num_accepted]]
        clocks.append(clock_ns(model.device))
        num_rounds += 1
        depths += [*round_.draft_exits[:num_accepted], model.num_layers]
        drafted.update(round_.draft_exits)
        accepted.update(round_.draft_exits[:num_accepted])
        if record_logits:
            kept_logits.append(logits[: num_accepted + 1].clone())  # a slice would keep all W rows

    generation = Generation(
        output_token_ids=tuple(output),
        finish_reason="eos" if output[-1] in eos else "length",
        ttft_s=(clocks[0] - started) / 1e9,
        e2e_s=(clocks[-1] - started) / 1e9,
        step_gaps_s=tuple((b - a) / 1e9 for a, b in pairwise(clocks)),
        num_rounds=num_rounds,
        layers_run=layers_run,
        exits=policy.exits,
        drafted_per_exit=tuple(drafted[e] for e in policy.exits),
        accepted_per_exit=tuple(accepted[e] for e in policy.exits),
        draft_depths=tuple(depths),
    )
    return Decoded(generation, torch.cat(kept_logits) if record_logits else None)


def run_round(
    model: DecoderModel,
    cache: KVCache,
    round_: Round,
    policy: Policy,
    drafter: Drafter | None,
    max_drafts: int,
    eos: Collection[int],
) -> int:
    """Drafts at the policy's exits until a token runs through all layers and takes every parked slot along.

    Stops drafting at `max_drafts` and at a confident EOS, which nothing may follow. Returns the layers run.
    """
    gammas = dict(zip(policy.exits, policy.gammas, strict=True))
    boundaries = (*policy.exits, model.num_layers)
    layers_run, may_draft = 0, True
    while round_.layers_run[-1] < model.num_layers:
        stop = next(boundary for boundary in boundaries if boundary > round_.layers_run[-1])
        layers_run += advance(model, cache, round_, stop)
        if stop == model.num_layers or not may_draft or round_.num_drafts >= max_drafts:
            continue
        assert drafter is not None
        position = round_.first_position + round_.current
        token_id, confidence = drafter.propose(stop, round_.hidden, round_.current, position)
        if confidence > gammas[stop]:
            may_draft = token_id not in eos
            if may_draft:
                add_draft(model, round_, token_id, stop)
    return layers_run


def room_for_output(model: DecoderModel, prompt_len: int) -> int:
    """How many tokens may follow a prompt in the model's context; raises PromptTooLongError when none can."""
    room = model.context_len - prompt_len
    if prompt_len < 1 or room < 1:
        raise PromptTooLongError(
            f"the prompt has {prompt_len} tokens; the model's context of {model.context_len} needs 1 to "
            f"{model.context_len - 1} so that a token can follow: shorten the prompt"
        )
    return room


def clock_ns(device: torch.device) -> int:
    """`perf_counter_ns` once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()
