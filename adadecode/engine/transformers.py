"""transformers' own greedy `generate`: the independent oracle, and the baseline users know."""

from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from adadecode.engine.generate import Request
from adadecode.engine.tally import Decoded, Tally
from adadecode.model.decoder import DecoderModel


class _TokenClock(StoppingCriteria):
    """Never stops; tells `tally` of every token."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> Any:
        self.tally.add_token()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_with_transformers(model: DecoderModel, request: Request) -> Decoded:
    """Greedy `generate` of the wrapped model through transformers' SDPA attention and its own cache."""
    limit, eos = request.limit(model), sorted(request.eos(model))
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
        return_dict_in_generate=True,
        output_logits=request.record_logits,
    )
    inputs = torch.tensor([list(request.prompt_ids)], device=model.device)
    tally = Tally(model.device, model.num_layers)
    result = model.lm.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_TokenClock(tally)]),
    )
    decoded = tally.decoded(result.sequences[0, len(request.prompt_ids) :].tolist(), eos)
    if not request.record_logits:
        return decoded
    # `generate` widens the logits to float32; back in the model's dtype they are the bits its LM head gave
    return decoded._replace(logits=torch.cat(result.logits).to(model.dtype).cpu())
