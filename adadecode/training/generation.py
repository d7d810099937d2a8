"""Greedy continuations of many prompts, by whatever is fastest here."""

from collections.abc import Iterator

import torch
from transformers import GenerationConfig

from adadecode.engine.generate import generate, room_for_output
from adadecode.model.decoder import DecoderModel

BATCH_PROMPTS = 64


@torch.inference_mode()
def greedy_continuations(
    model: DecoderModel, prompts: list[list[int]], max_new_tokens: int
) -> Iterator[dict[int, list[int]]]:
    """Yields, by index of the prompt and a few at a time, what `engine.generate` gives after each of `prompts`.

    Native kernels decode one prompt after the other: in bfloat16, which a CPU may have no instructions for, they are
    several times as fast as batches of transformers' generate. Else prompts are batched with their like in length, so
    that little is padding; in half precision a near tie may fall the other way there than in the engine.
    """
    if model.kernels == "native":
        for i, prompt in enumerate(prompts):
            decoded = generate(model, prompt, width=1, max_new_tokens=max_new_tokens)
            yield {i: list(decoded.generation.output_token_ids)}
        return
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(prompts), BATCH_PROMPTS):
        batch = by_length[first : first + BATCH_PROMPTS]
        yield dict(zip(batch, _generate_batch(model, [prompts[i] for i in batch], max_new_tokens), strict=True))


def _generate_batch(model: DecoderModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuations of `prompts`, padded on the left to one length, each cut where `engine.generate` ends it."""
    longest = max(map(len, prompts))
    limits = [min(max_new_tokens, room_for_output(model, len(prompt))) for prompt in prompts]
    eos = sorted(model.eos_token_ids)
    pad = eos[0] if eos else 0
    padded = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    config = GenerationConfig(do_sample=False, max_new_tokens=max(limits), eos_token_id=eos or None, pad_token_id=pad)
    sequences = model.lm.generate(padded, attention_mask=mask, generation_config=config)
    continuations = []
    for row, limit in zip(sequences[:, longest:].tolist(), limits, strict=True):
        ends = (i + 1 for i, token_id in enumerate(row) if token_id in model.eos_token_ids)
        continuations.append(row[: min(limit, next(ends, limit))])
    return continuations
