"""A row of methods.py and a request to a generation."""

from adadecode.engine.drafters import Heads, drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import VANILLA, Policy
from adadecode.engine.tally import Decoded
from adadecode.engine.transformers import generate_with_transformers
from adadecode.methods import Method
from adadecode.model.decoder import DecoderModel


def decode(
    model: DecoderModel, method: Method, request: Request, policy: Policy = VANILLA, heads: Heads | None = None
) -> Decoded:
    """What `method` gives for `request` in a run of `policy`; `heads` are needed where the method drafts at exits.

    Raises PromptTooLongError and NonFiniteLogitsError.
    """
    if method.by == "transformers":
        return generate_with_transformers(model, request)
    policy = policy.for_method(method)
    return generate(model, request, policy, drafters_of(policy, heads))
