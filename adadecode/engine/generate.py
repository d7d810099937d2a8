"""Generation, greedy or drawn, vanilla and AdaDecode: one loop, one prefill, one set of clocks and stop rules."""

import itertools
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from adadecode.engine.drafters import Drafter, SeesStates
from adadecode.engine.policy import VANILLA, Policy
from adadecode.engine.round import (
    Round,
    accept_all,
    add_drafts,
    begin_round,
    check_finite,
    judge_again,
    reject_after,
    verify,
)
from adadecode.engine.stop_strings import StopScan, StopStrings
from adadecode.engine.tally import Decoded, Tally
from adadecode.errors import PromptTooLongError, UnknownTokenError
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals
from adadecode.model.decoder import DecoderModel


@dataclass(frozen=True)
class Request:
    """What is to be continued, and how far: exactly `max_new_tokens` unless an end comes before.

    That may be an EOS, the end of the context, or the first token at which the output's text has one of `stops`.
    `eos_token_ids` None stands for the model's own. `record_logits` keeps the logits of the output. `draw` says how tokens
    are drawn, None that the likeliest are taken.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    eos_token_ids: Collection[int] | None = None
    record_logits: bool = False
    stops: StopStrings | None = None
    draw: Draw | None = None

    def limit(self, model: DecoderModel) -> int:
        """The most tokens that may follow the prompt; raises PromptTooLongError when the context has no room for one.

        Raises UnknownTokenError for a prompt with a token that the model lacks.
        """
        room = room_for_output(model, len(self.prompt_ids))
        lowest, highest = min(self.prompt_ids), max(self.prompt_ids)
        if not 0 <= lowest <= highest < model.vocab_size:
            raise UnknownTokenError.of(lowest, highest, model.vocab_size)
        return min(self.max_new_tokens, room)

    def eos(self, model: DecoderModel) -> Collection[int]:
        return model.eos_token_ids if self.eos_token_ids is None else self.eos_token_ids


@dataclass(frozen=True)
class Rules:
    """What holds in every round of a generation: who drafts, the lowest boundary first, when they stop, and what ends it.

    `of_chain` says that a gamma is of all pending drafts together, not of the token alone. Layers in `gaps`, ranges
    [start, stop), are left out.
    """

    drafters: tuple[Drafter, ...]
    reject: float | None
    of_chain: bool
    eos: Collection[int]
    num_layers: int
    gaps: tuple[tuple[int, int], ...] = ()


class Kept(NamedTuple):
    """Tokens that are verified and stay: those of the prefill or of a round, each with the depth it was drafted at."""

    token_ids: list[int]
    depths: list[int]


Rounds = Generator[Kept, None, Decoded]  # of a generation under way, which it comes to


@torch.inference_mode()
def generate(
    model: DecoderModel, request: Request, policy: Policy = VANILLA, drafters: Sequence[Drafter] = ()
) -> Decoded:
    """The continuation that `request` asks for, by rounds under `policy`, which has one of `drafters` for each exit.

    For one width the tokens and logits are the same, bit for bit, under every policy, unless it does not verify: then
    every draft is kept, right or wrong. Raises PromptTooLongError, UnknownTokenError and NonFiniteLogitsError.
    """
    under_way = rounds(model, request, policy, drafters)
    while True:
        try:
            next(under_way)
        except StopIteration as end:
            return end.value


def rounds(model: DecoderModel, request: Request, policy: Policy, drafters: Sequence[Drafter]) -> Rounds:
    """What `generate` gives, and on the way the tokens that each round keeps; to be run where nothing is differentiated."""
    assert tuple(drafter.boundary for drafter in drafters) == policy.draft_exits, (drafters, policy)
    prompt_ids, limit, eos = list(request.prompt_ids), request.limit(model), request.eos(model)
    rules = Rules(tuple(drafters), policy.reject, policy.stop == "chain", eos, model.num_layers, policy.gaps)
    end_round = verify if policy.verified else accept_all
    step = model.new_step(policy.width, len(prompt_ids) + limit)
    step.draw_by(request.draw)
    boundaries = sorted({*policy.exits, *itertools.chain(*policy.gaps), model.num_layers})
    step.prepare(boundaries, [test for drafter in drafters for test in drafter.tests])

    keeps_logits = request.record_logits and policy.verified
    tally = Tally(model.device, model.num_layers, policy.draft_exits, record_logits=keeps_logits)
    first_id, top, first_logits = step.prefill(prompt_ids)
    output = [first_id]
    extend(drafters, prompt_ids)
    extend(drafters, output)
    seeing = [drafter for drafter in drafters if isinstance(drafter, SeesStates)]
    for drafter in seeing:
        drafter.see(step, 0)
    scan = StopScan(request.stops, eos)
    scan.kept(output)
    tally.add_token(first_logits)
    check_finite([top], len(prompt_ids) - 1)
    yield Kept(output[:], [model.num_layers])

    while output[-1] not in eos and len(output) < limit and not scan.is_over:
        max_drafts = min(policy.max_drafts, limit - len(output) - 1)
        round_ = begin_round(step, output[-1], len(prompt_ids) + len(output) - 1, max_drafts)
        draft(step, round_, rules)
        num_accepted, next_id = end_round(step, round_)
        kept = scan.kept([*round_.token_ids[1 : num_accepted + 1], next_id])
        output += kept
        extend(drafters, kept)
        for drafter in seeing:
            drafter.see(step, num_accepted)
        tally.add_round(round_, len(kept) - 1, step.logits)
        yield Kept(kept, [*round_.draft_exits[: len(kept) - 1], model.num_layers])
    return tally.decoded(output, eos, is_stopped=scan.is_over)


def extend(drafters: Sequence[Drafter], token_ids: list[int]) -> None:
    """Tells every drafter of `token_ids`, which are certain."""
    for drafter in drafters:
        drafter.extend(token_ids)


def draft(step: DecodeStep, round_: Round, rules: Rules) -> None:
    """Drafts at one boundary after the other until a token runs through all layers and takes every parked slot along.

    Drafts nothing while the round has no room, and nothing after a confident EOS of an exit.
    """
    drafters, reject = rules.drafters, rules.reject
    may_draft, idx = True, 0
    while idx < len(drafters):
        drafter = drafters[idx]
        idx += 1
        segment = round_.pass_to(drafter.boundary)
        may_draft = may_draft and round_.room > 0
        # nothing can be sure enough where the pending drafts are not
        is_open = may_draft and (not rules.of_chain or not round_.num_drafts or round_.chance > drafter.gamma)
        first_tested = round_.current if reject is None else segment.lo
        if not (is_open or first_tested < round_.current):
            if segment.start < segment.stop:
                step.run(*segment)
            continue
        proposals = drafter.propose(step, round_, segment, first_tested)
        if not proposals:
            continue
        following = proposals[round_.current - first_tested :]
        contradicted = first_contradicted(round_, first_tested, proposals, reject)
        if rules.of_chain:
            judge_again(round_, first_tested, proposals)
        if contradicted is not None:
            following = proposals[contradicted - first_tested :][:1]
            reject_after(round_, contradicted)
            may_draft = True
        pending = round_.chance if rules.of_chain else 1.0
        drafts: Proposals = []
        for token_id, confidence in following:
            if not may_draft or pending * confidence <= drafter.gamma:
                break
            if token_id in rules.eos:
                # one that was looked up in the text alone does not keep the exits from drafting
                may_draft = drafter.boundary == 0
                break
            drafts.append((token_id, confidence))
        if drafts:
            add_drafts(step, round_, drafts, drafter.boundary)
            idx = 0 if drafter.boundary else idx  # at boundary 0 the chain is all that its drafter has to say
    for start, stop in rules.gaps:
        step.run(*round_.pass_to(start))
        round_.jump_to(stop)
    step.run(*round_.pass_to(rules.num_layers))


def first_contradicted(round_: Round, lo: int, proposals: Proposals, reject: float | None) -> int | None:
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
        raise PromptTooLongError.of(prompt_len, model.context_len)
    return room
