"""The model's own greedy outputs, which heads learn from: made by whatever is fastest here, stored and reused in parts.

A part holds the outputs of one chunk of prompts, `outputs/part-00000.parquet` of the first, and says in its metadata what
it was made from.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig

from adadecode.engine.generate import Request, generate, room_for_output
from adadecode.engine.policy import Policy
from adadecode.errors import PromptError, RunFolderError
from adadecode.files import PRIVATE, whole_file
from adadecode.model.decoder import DecoderModel
from adadecode.model.memory import broken_devices_named
from adadecode.records import Say
from adadecode.settings import TrainConfig
from adadecode.training.prompts import Chunk, UsablePrompts, hash_ids

OUTPUTS_DIR = "outputs"
PROGRESS_EVERY_S = 10.0


class GreedyOutput(NamedTuple):
    """A prompt and the model's greedy continuation, at least one token, up to and with its first EOS."""

    prompt_ids: list[int]
    output_ids: list[int]


class Part(NamedTuple):
    """What is known of a stored part without reading its rows."""

    part_idx: int
    num_outputs: int
    num_tokens: int  # of the outputs alone
    content_hash: str


@torch.inference_mode()
def greedy_continuations(
    model: DecoderModel, prompts: list[list[int]], max_new_tokens: int, batch_prompts: int
) -> Iterator[dict[int, list[int]]]:
    """Yields, by index of the prompt and a few at a time, what `engine.generate` gives after each of `prompts`.

    Native kernels decode one prompt after the other: in bfloat16, which a CPU may have no instructions for, they are
    several times as fast as batches of transformers' generate. Else `batch_prompts` go at a time, with their like in
    length, so that little is padding; in half precision a near tie may fall the other way there than in the engine.
    """
    if model.kernels == "native":
        for i, prompt in enumerate(prompts):
            decoded = generate(model, Request(prompt, max_new_tokens), Policy(rows=1))
            yield {i: list(decoded.generation.output_token_ids)}
        return
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(prompts), batch_prompts):
        batch = by_length[first : first + batch_prompts]
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


class OutputsProgress:
    """Counts the outputs that are there, and says how far that is: of reused parts at once, of new outputs now and then."""

    def __init__(self, num_prompts: int, say: Say) -> None:
        self._num_prompts, self._say = num_prompts, say
        self._num_done = self._num_made = self._num_tokens = 0
        self._started = self._last_said = time.monotonic()

    def made(self, num_outputs: int, num_tokens: int) -> None:
        """Counts new outputs."""
        self._num_made += num_outputs
        self._count(num_outputs, num_tokens)
        if self._num_done == self._num_prompts or time.monotonic() - self._last_said >= PROGRESS_EVERY_S:
            self._say_how_far()

    def reused(self, part: Part) -> None:
        """Counts the outputs of a part that was there before, also one that another worker had just made."""
        self._count(part.num_outputs, part.num_tokens)
        self._say(f"outputs: reusing {part.num_outputs} of {part_path(Path(), part.part_idx).name}")
        if self._num_done == self._num_prompts and self._num_made:
            self._say_how_far()

    def _say_how_far(self) -> None:
        self._last_said = time.monotonic()
        left_s = (self._last_said - self._started) / self._num_made * (self._num_prompts - self._num_done)
        self._say(
            f"outputs: {self._num_done}/{self._num_prompts} prompts, {self._num_tokens} tokens, {left_s:.0f} s left"
        )

    def _count(self, num_outputs: int, num_tokens: int) -> None:
        self._num_done += num_outputs
        self._num_tokens += num_tokens


def make_outputs(
    model: DecoderModel, prompts: Iterable[list[int] | PromptError], config: TrainConfig, out: Path, say: Say
) -> list[Part]:
    """The parts of the outputs of the usable `prompts`, in their order, made in this process where they are missing.

    Raises UsageError when fewer than two prompts are usable. `prompts` is iterated over twice.
    """
    usable = UsablePrompts(prompts, model.context_len, model.vocab_size)
    num_prompts, lines = usable.count()
    for line in lines:
        say(line)
    progress = OutputsProgress(num_prompts, say)
    parts = []
    for chunk in usable.chunks(config.part_prompts):
        part = find_part(model, chunk, config, out, say)
        if part is None:
            part = make_part(model, chunk, config, out, progress.made)
        else:
            progress.reused(part)
        parts.append(part)
    return parts


def find_part(model: DecoderModel, chunk: Chunk, config: TrainConfig, out: Path, say: Say) -> Part | None:
    """The stored part of `chunk`; None when there is none, it is damaged or it was made from something else."""
    path = part_path(out, chunk.part_idx)
    if not path.exists():
        return None
    try:
        found = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        say(f"{path.name} is damaged: generating again")
        return None
    stored = {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}
    if stored.get("kernels", "auto") == config.kernels == "auto":
        stored["kernels"] = _generated_by(model)  # an earlier version stored the part, and not what auto came to
    differing = [name for name, value in _made_from(model, chunk, config).items() if stored.get(name) != value]
    if differing and config.outputs is not None:
        raise RunFolderError(
            f"--outputs {config.outputs!r}: {path.name} was made with another {', '.join(differing)}; "
            "choose another folder, or leave --outputs out to make outputs of its own"
        )
    if differing:
        say(f"{path.name} was made with another {', '.join(differing)}: generating again")
        return None
    return Part(chunk.part_idx, found.num_rows, int(stored["num_tokens"]), stored["content_hash"])


def make_part(
    model: DecoderModel, chunk: Chunk, config: TrainConfig, out: Path, on_outputs: Callable[[int, int], None]
) -> Part:
    """Generates the outputs of `chunk` and stores them; tells `on_outputs` of outputs and tokens as they come.

    Raises DeviceLostError when another process must try again.
    """
    outputs: dict[int, list[int]] = {}
    with broken_devices_named():
        for continuations in greedy_continuations(model, chunk.prompts, config.max_new_tokens, config.batch_prompts):
            outputs |= continuations
            on_outputs(len(continuations), sum(map(len, continuations.values())))
    ordered = [outputs[i] for i in range(len(chunk.prompts))]
    part = Part(chunk.part_idx, len(ordered), sum(map(len, ordered)), hash_ids([*chunk.prompts, *ordered]))
    metadata = _made_from(model, chunk, config) | {
        "num_tokens": str(part.num_tokens),
        "content_hash": part.content_hash,
    }
    token_ids = pa.list_(pa.int32())
    schema = pa.schema({"prompt_token_ids": token_ids, "output_token_ids": token_ids}, metadata=metadata)
    table = pa.table([pa.array(column, token_ids) for column in (chunk.prompts, ordered)], schema=schema)
    path = part_path(out, part.part_idx)
    path.parent.mkdir(PRIVATE, parents=True, exist_ok=True)
    with whole_file(path, many_writers=True) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return part


def read_part(out: Path, part: Part) -> list[GreedyOutput]:
    """The outputs of a stored part, in the order of their prompts; raises RunFolderError when they are not those made."""
    path = part_path(out, part.part_idx)
    prompts, outputs = list[list[int]](), list[list[int]]()
    try:
        table = pq.read_table(path, use_threads=False)
        prompts, outputs = (table[name].to_pylist() for name in ("prompt_token_ids", "output_token_ids"))
        is_whole = hash_ids([*prompts, *outputs]) == part.content_hash
    except (pa.ArrowException, OSError, OverflowError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise RunFolderError(f"{path}: damaged or replaced since it was made; delete it and run the same command again")
    return [GreedyOutput(*row) for row in zip(prompts, outputs, strict=True)]


def part_path(out: Path, part_idx: int) -> Path:
    """Where the part `part_idx` of the heads' folder `out` is stored."""
    return out / OUTPUTS_DIR / f"part-{part_idx:05d}.parquet"


def _generated_by(model: DecoderModel) -> str:
    """The kernels of `greedy_continuations`: at a near tie others may choose the other token."""
    return "native" if model.kernels == "native" else "eager"


def _made_from(model: DecoderModel, chunk: Chunk, config: TrainConfig) -> dict[str, str]:
    """All that decides the outputs of `chunk`, as a part's metadata have it."""
    return {
        "base_model_hash": model.model_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "eos_token_ids": json.dumps(sorted(model.eos_token_ids)),
        "kernels": _generated_by(model),
        "max_new_tokens": str(config.max_new_tokens),
        "prompts_hash": hash_ids(chunk.prompts),
    }
