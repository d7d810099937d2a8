"""transformers' own greedy `generate`: the independent oracle, and the baseline users know."""

import time
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from adadecode.engine.generate import Decoded, clock_ns, room_for_output
from adadecode.model.decoder import DecoderModel
from adadecode.records import Generation


class _TokenClock(StoppingCriteria):
    """Never stops; notes the time after every token."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clocks: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> Any:
        self.clocks.append(clock_ns(self.device))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_with_transformers(
    model: DecoderModel, prompt_ids: list[int], *, max_new_tokens: int, record_logits: bool = False
) -> Decoded:
    """Greedy `generate` of the wrapped model through transformers' SDPA attention and its own cache."""
    limit = min(max_new_tokens, room_for_output(model, len(prompt_ids)))
    eos = sorted(model.eos_token_ids)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
        return_dict_in_generate=True,
        output_logits=record_logits,
    )
    inputs = torch.tensor([prompt_ids], device=model.device)
    clock = _TokenClock(model.device)
    started = time.perf_counter_ns()
    result = model.lm.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    output = result.sequences[0, len(prompt_ids) :].tolist()
    clocks = clock.clocks
    generation = Generation(
        output_token_ids=tuple(output),
        finish_reason="eos" if output[-1] in model.eos_token_ids else "length",
        ttft_s=(clocks[0] - started) / 1e9,
        e2e_s=(clocks[-1] - started) / 1e9,
        step_gaps_s=tuple((b - a) / 1e9 for a, b in pairwise(clocks)),
        num_rounds=len(output) - 1,
        layers_run=model.num_layers * (len(output) - 1),
        exits=(),
        drafted_per_exit=(),
        accepted_per_exit=(),
        draft_depths=(model.num_layers,) * len(output),
    )
    # `generate` widens the logits to float32; back in the model's dtype they are the bits its LM head gave
    logits = torch.cat(result.logits).to(model.dtype) if record_logits else None
    return Decoded(generation, logits)
