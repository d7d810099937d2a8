"""The model's own greedy outputs, which exit heads learn from (paper section 3): batched, kept as Parquet."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig

from adadecode.config import TrainConfig
from adadecode.engine.generate import room_for_output
from adadecode.errors import PromptTooLongError, UsageError
from adadecode.model.decoder import DecoderModel

OUTPUTS = "outputs.parquet"
BATCH_PROMPTS = 64

Say = Callable[[str], None]


class GreedyOutput(NamedTuple):
    """A prompt and the model's greedy continuation, at least one token, up to and with its first EOS."""

    prompt_ids: list[int]
    output_ids: list[int]


def greedy_outputs(
    model: DecoderModel, prompts: list[list[int]], config: TrainConfig, out: Path, say: Say
) -> list[GreedyOutput]:
    """Outputs of the distinct `prompts` that fit the context, in their order; raises UsageError below two.

    Taken from `out`/outputs.parquet when this model made it from these prompts, else generated and written there.
    """
    usable = _usable_prompts(model, prompts, say)
    made_from = {
        "base_model_hash": model.model_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "eos_token_ids": json.dumps(sorted(model.eos_token_ids)),
        "max_new_tokens": str(config.max_new_tokens),
        "prompts_hash": hashlib.sha256(json.dumps(usable).encode()).hexdigest()[:16],
        "seed": str(config.seed),
    }
    path = out / OUTPUTS
    outputs = _read_outputs(path, made_from, say) if path.exists() else None
    if outputs is None:
        outputs = _generate(model, usable, config.max_new_tokens, say)
        _write_outputs(path, outputs, made_from)
    return outputs


def _usable_prompts(model: DecoderModel, prompts: list[list[int]], say: Say) -> list[list[int]]:
    """Distinct prompts, so that none is both trained on and held out, with room for at least one token."""
    usable: list[list[int]] = []
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    if len(distinct) < len(prompts):
        say(f"skipped {len(prompts) - len(distinct)} prompts that occur more than once")
    for prompt in distinct:
        try:
            room_for_output(model, len(prompt))
            usable.append(prompt)
        except PromptTooLongError as error:
            say(f"skipped one prompt: {error}")
    if len(usable) < 2:
        raise UsageError(
            f"{len(usable)} of {len(prompts)} prompts are usable; heads need at least 2, one to train on and one held "
            "out: give more prompts that fit the model's context"
        )
    return usable


@torch.inference_mode()
def _generate(model: DecoderModel, prompts: list[list[int]], max_new_tokens: int, say: Say) -> list[GreedyOutput]:
    """Greedy outputs of `prompts`, batched with their like in length so that little is padding."""
    outputs: dict[int, GreedyOutput] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    started, num_tokens = time.monotonic(), 0
    for first in range(0, len(prompts), BATCH_PROMPTS):
        batch = by_length[first : first + BATCH_PROMPTS]
        continuations = _generate_batch(model, [prompts[i] for i in batch], max_new_tokens)
        for i, output_ids in zip(batch, continuations, strict=True):
            outputs[i] = GreedyOutput(prompts[i], output_ids)
            num_tokens += len(output_ids)
        left_s = (time.monotonic() - started) / len(outputs) * (len(prompts) - len(outputs))
        say(f"outputs: {len(outputs)}/{len(prompts)} prompts, {num_tokens} tokens, {left_s:.0f} s left")
    return [outputs[i] for i in range(len(prompts))]


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


def _read_outputs(path: Path, made_from: dict[str, str], say: Say) -> list[GreedyOutput] | None:
    """The outputs in `path`; None when the file is damaged or was made from something else."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid:
        say(f"{OUTPUTS} is damaged: generating again")
        return None
    stored = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    differing = [name for name, value in made_from.items() if stored.get(name) != value]
    if differing:
        say(f"{OUTPUTS} was made with another {', '.join(differing)}: generating again")
        return None
    say(f"outputs: reusing {table.num_rows} of {OUTPUTS}")
    columns = (table[name].to_pylist() for name in ("prompt_token_ids", "output_token_ids"))
    return [GreedyOutput(*row) for row in zip(*columns, strict=True)]


def _write_outputs(path: Path, outputs: list[GreedyOutput], made_from: dict[str, str]) -> None:
    token_ids = pa.list_(pa.int32())
    schema = pa.schema({"prompt_token_ids": token_ids, "output_token_ids": token_ids}, metadata=made_from)
    columns = [[o.prompt_ids for o in outputs], [o.output_ids for o in outputs]]
    table = pa.table([pa.array(column, token_ids) for column in columns], schema=schema)
    unfinished = path.with_suffix(".tmp")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)
