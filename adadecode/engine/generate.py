"""Greedy generation, vanilla and AdaDecode: one loop, one prefill, one set of clocks and stop rules."""

import time
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from adadecode.engine.drafters import Drafter, TokenDrafter
from adadecode.engine.ngram import NgramDrafter
from adadecode.engine.policy import VANILLA, Policy
from adadecode.engine.round import Round, accept_all, add_drafts, begin_round, check_finite, reject_after, verify
from adadecode.errors import PromptTooLongError
from adadecode.kernels.step import DecodeStep
from adadecode.model.decoder import DecoderModel
from adadecode.records import Generation


class Decoded(NamedTuple):
    """A generation and, when asked for, the logits `[n, V]` of its n output tokens in the model's dtype.

    Without verification there are none: nobody computed those of the drafts.
    """

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
    ngrams: TokenDrafter | None = None,
    verified: bool = True,
    record_logits: bool = False,
) -> Decoded:
    """Greedy continuation of `prompt_ids`: vanilla decoding at `width` rows, or AdaDecode under `policy`.

    Yields exactly `max_new_tokens` tokens unless an EOS (the model's own when `eos_token_ids` is None) or the context
    ends it earlier. `ngrams` stands in for the policy's own n-gram drafter. For one width the tokens and logits are the
    same, bit for bit, under every policy, unless `verified` is False: then every draft is kept, right or wrong. Raises
    PromptTooLongError and NonFiniteLogitsError.
    """
    assert policy.max_drafts < width, (policy, width)
    assert drafter is not None or not policy.exits, policy
    eos = model.eos_token_ids if eos_token_ids is None else eos_token_ids
    limit = min(max_new_tokens, room_for_output(model, len(prompt_ids)))
    step = model.new_step(width, len(prompt_ids) + limit)
    step.prepare((*policy.exits, model.num_layers), () if drafter is None else drafter.tests)
    if ngrams is None and policy.ngram is not None:
        ngrams = NgramDrafter(policy.ngram)
    end_round = verify if verified else accept_all
    record_logits = record_logits and verified

    started = clock_ns(model.device)
    first_logits = step.prefill(prompt_ids)
    top, first_id = first_logits.max(dim=-1)
    output, kept_logits = [int(first_id)], [first_logits[None]] if record_logits else []
    if ngrams is not None:
        ngrams.extend([*prompt_ids, *output])
    clocks = [clock_ns(model.device)]
    check_finite([float(top)], len(prompt_ids) - 1)

    depths, drafted, accepted = [model.num_layers], Counter[int](), Counter[int]()
    num_rounds = layers_run = 0
    while output[-1] not in eos and len(output) < limit:
        round_ = begin_round(step, output[-1], len(prompt_ids) + len(output) - 1)
        max_drafts = min(policy.max_drafts, limit - len(output) - 1)
        layers_run += run_round(step, round_, policy, drafter, ngrams, max_drafts, model.num_layers, eos)
        num_accepted, next_id = end_round(step, round_)

        kept = [*round_.token_ids[1 : num_accepted + 1], next_id]
        output += kept
        if ngrams is not None:
            ngrams.extend(kept)
        clocks.append(clock_ns(model.device))
        num_rounds += 1
        depths += [*round_.draft_exits[:num_accepted], model.num_layers]
        drafted.update(round_.draft_exits + round_.dropped)
        accepted.update(round_.draft_exits[:num_accepted])
        if record_logits:
            kept_logits.append(step.logits[: num_accepted + 1].clone())  # the next round overwrites them

    generation = Generation(
        output_token_ids=tuple(output),
        finish_reason="eos" if output[-1] in eos else "length",
        ttft_s=(clocks[0] - started) / 1e9,
        e2e_s=(clocks[-1] - started) / 1e9,
        step_gaps_s=tuple((b - a) / 1e9 for a, b in pairwise(clocks)),
        num_rounds=num_rounds,
        layers_run=layers_run,
        exits=policy.draft_exits,
        drafted_per_exit=tuple(drafted[e] for e in policy.draft_exits),
        accepted_per_exit=tuple(accepted[e] for e in policy.draft_exits),
        draft_depths=tuple(depths),
    )
    return Decoded(generation, torch.cat(kept_logits) if record_logits else None)


def run_round(
    step: DecodeStep,
    round_: Round,
    policy: Policy,
    drafter: Drafter | None,
    ngrams: TokenDrafter | None,
    max_drafts: int,
    num_layers: int,
    eos: Collection[int],
) -> int:
    """Drafts at the policy's exits until a token runs through all layers and takes every parked slot along.

    Stops drafting at `max_drafts` and at a confident EOS, which nothing may follow. Returns the layers run.
    """
    boundaries = (*policy.exits, num_layers)
    layers_run, may_draft = 0, True
    draft_ngrams(step, round_, ngrams, max_drafts, eos)
    while round_.layers_run[-1] < num_layers:
        segment = round_.pass_to(next(boundary for boundary in boundaries if boundary > round_.layers_run[-1]))
        layers_run += segment.stop - segment.start
        may_draft = may_draft and round_.num_drafts < max_drafts
        first_tested = round_.current if policy.reject is None else segment.lo
        if segment.stop == num_layers or not (may_draft or first_tested < round_.current):
            step.run(*segment)
            continue
        assert drafter is not None
        proposals = drafter.propose(step, segment, first_tested, round_.first_position)
        if proposals is None:
            continue
        contradicted = first_contradicted(round_, first_tested, proposals, policy.reject)
        if contradicted is not None:
            reject_after(round_, contradicted)
            may_draft = True
        token_id, confidence = proposals[round_.current - first_tested]
        if may_draft and confidence > policy.gamma_at(segment.stop):
            may_draft = token_id not in eos
            if may_draft:
                add_drafts(step, round_, [token_id], segment.stop)
                draft_ngrams(step, round_, ngrams, max_drafts, eos)
    return layers_run


def draft_ngrams(
    step: DecodeStep, round_: Round, ngrams: TokenDrafter | None, max_drafts: int, eos: Collection[int]
) -> None:
    """Adds what the n-gram drafter proposes after the current slot, up to `max_drafts` in all and to an EOS."""
    room = max_drafts - round_.num_drafts
    if ngrams is None or room < 1:
        return
    proposed = ngrams.propose(round_.token_ids[1:], room)
    ends = next((i for i, token_id in enumerate(proposed) if token_id in eos), len(proposed))
    if ends:
        add_drafts(step, round_, proposed[:ends], 0)


def first_contradicted(round_: Round, lo: int, proposals: list[tuple[int, float]], reject: float | None) -> int | None:
    """The first slot from `lo` on whose draft another token is proposed for with more confidence than `reject`."""
    if reject is not None:
        for slot in range(lo, round_.current):
            token_id, confidence = proposals[slot - lo]
            if confidence > reject and token_id != round_.token_ids[slot + 1]:
                return slot
    return None


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
