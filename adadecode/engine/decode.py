"""A row of methods.py and a request to a generation."""

from collections.abc import Iterable

import torch

from adadecode.engine.draft_model import ModelDrafter
from adadecode.engine.drafters import Drafter, Heads, drafters_of
from adadecode.engine.generate import Kept, Request, Rounds, generate, rounds
from adadecode.engine.medusa import MedusaDrafter
from adadecode.engine.policy import VANILLA, Policy, check_heads_at
from adadecode.engine.tally import Decoded
from adadecode.engine.transformers import check_transformers, generate_with_transformers
from adadecode.errors import UsageError
from adadecode.methods import Method
from adadecode.model.decoder import DecoderModel
from adadecode.model.medusa_heads import MedusaHeads
from adadecode.settings import draft_model_missing, medusa_heads_missing, nothing_drafts, skip_layers_missing


def decode(
    model: DecoderModel,
    method: Method,
    request: Request,
    policy: Policy = VANILLA,
    heads: Heads | None = None,
    draft: DecoderModel | None = None,
    medusa: MedusaHeads | None = None,
) -> Decoded:
    """What `method` gives for `request` in a run of `policy`; `heads` are needed where the method drafts at exits.

    And `draft`, a draft model, or `medusa` heads, where those draft. Raises PromptTooLongError and NonFiniteLogitsError.
    """
    if method.by == "transformers":
        return generate_with_transformers(model, request, policy.for_method(method), draft)
    return generate(
        model, request, policy.for_method(method), _drafters(model, method, request, policy, heads, draft, medusa)
    )


@torch.inference_mode()
def decode_rounds(
    model: DecoderModel,
    method: Method,
    request: Request,
    policy: Policy = VANILLA,
    heads: Heads | None = None,
    draft: DecoderModel | None = None,
    medusa: MedusaHeads | None = None,
) -> Rounds:
    """What `decode` gives, and on the way the tokens that each round keeps: of transformers all of them at its end."""
    policy_of = policy.for_method(method)
    if method.by == "transformers":
        decoded = generate_with_transformers(model, request, policy_of, draft)
        yield Kept(list(decoded.generation.output_token_ids), list(decoded.generation.draft_depths))
        return decoded
    drafters = _drafters(model, method, request, policy, heads, draft, medusa)
    return (yield from rounds(model, request, policy_of, drafters))


def _drafters(
    model: DecoderModel,
    method: Method,
    request: Request,
    policy: Policy,
    heads: Heads | None,
    draft: DecoderModel | None,
    medusa: MedusaHeads | None,
) -> tuple[Drafter, ...]:
    """What drafts for `method` in the rounds of `policy`."""
    policy = policy.for_method(method)
    drafters: tuple[Drafter, ...] = drafters_of(policy, heads, request.draw)
    if policy.draft_model:
        assert draft is not None, method
        num_positions = len(request.prompt_ids) + request.limit(model)
        eos = request.eos(model)
        drafters = (ModelDrafter(policy.draft_gamma, draft, num_positions, model.vocab_size, eos, request.draw),)
    if policy.medusa:
        assert medusa is not None, method
        drafters = (MedusaDrafter(policy.medusa_gamma, medusa, request.draw),)
    return drafters


def check_can_decode(
    model: DecoderModel,
    methods: Iterable[Method],
    policy: Policy,
    heads: Heads | None = None,
    draft: DecoderModel | None = None,
    medusa: MedusaHeads | None = None,
) -> None:
    """Raises UsageError where one of `methods` cannot decode in a run of `policy` with what there is."""
    for method in methods:
        if method.one_exit and policy.layerskip.exit_layer is None:
            raise UsageError(f"--methods {method.name}: a model of one layer has no exit; drop the method")
        adapted = policy.for_method(method)
        if method.one_exit and method.needs_heads(policy.exits):
            check_heads_at(adapted.exits, () if heads is None else heads.exits, flag="--layerskip-exit")
        if method.exits and method.drafts and not adapted.draft_exits:
            raise UsageError(nothing_drafts(method.name))
        if method.draft_model and draft is None:
            raise UsageError(draft_model_missing(method.name))
        if method.medusa and medusa is None:
            raise UsageError(medusa_heads_missing(method.name))
        if method.skips_layers and not policy.skipped:
            raise UsageError(skip_layers_missing(method.name))
        if method.by == "transformers":
            check_transformers(model, method.name, adapted, draft)
