"""The prompts heads are trained on, one after another: which are usable, and in which chunks their outputs are made."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from adadecode.errors import UsageError
from adadecode.files import short_hash
from adadecode.settings import TrainConfig
from adadecode.tasks import expand_task, iterate_examples
from adadecode.tasks.encode import encode_prompt


class Chunk(NamedTuple):
    """Prompts whose outputs are stored together, as part `part_idx`."""

    part_idx: int
    prompts: list[list[int]]


class TaskPrompts:
    """Token ids of the prompts `config` names, read and encoded anew each time they are iterated over."""

    def __init__(self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config, self._tokenizer = config, tokenizer

    def __iter__(self) -> Iterator[list[int]]:
        config = self._config
        for task in expand_task(config.task):
            for example in iterate_examples(task, config):
                prompt_ids = encode_prompt(self._tokenizer, example)
                if not prompt_ids:
                    raise UsageError(
                        f"sample {example.sample_id} of task {task}: its prompt has 0 tokens; prompts need at least 1, "
                        "leave it out"
                    )
                yield prompt_ids


class UsablePrompts:
    """The prompts after which a token fits into the context, each once, so that none is both trained on and held out.

    Iterating again gives the same; of all prompts only a hash is kept, and that only meanwhile.
    """

    def __init__(self, prompts: Iterable[list[int]], context_len: int) -> None:
        self._prompts, self._context_len = prompts, context_len
        self.num_seen = self.num_usable = self.num_repeated = self.num_too_long = 0

    def __iter__(self) -> Iterator[list[int]]:
        self.num_seen = self.num_usable = self.num_repeated = self.num_too_long = 0
        seen: set[bytes] = set()
        for prompt_ids in self._prompts:
            self.num_seen += 1
            if not prompt_ids:
                raise UsageError(f"prompt {self.num_seen - 1} has 0 tokens; prompts need at least 1, leave it out")
            digest = hash_ids([prompt_ids]).encode()
            if digest in seen:
                self.num_repeated += 1
            elif len(prompt_ids) >= self._context_len:
                self.num_too_long += 1
            else:
                seen.add(digest)
                self.num_usable += 1
                yield prompt_ids

    def chunks(self, chunk_len: int) -> Iterator[Chunk]:
        """The usable prompts in their order, `chunk_len` at a time."""
        chunk = Chunk(0, [])
        for prompt_ids in self:
            chunk.prompts.append(prompt_ids)
            if len(chunk.prompts) == chunk_len:
                yield chunk
                chunk = Chunk(chunk.part_idx + 1, [])
        if chunk.prompts:
            yield chunk

    def count(self) -> tuple[int, list[str]]:
        """How many there are, and lines that say what is left out; raises UsageError below two."""
        for _ in self:
            pass
        lines = []
        if self.num_repeated:
            lines.append(f"skipped {self.num_repeated} prompts that occur more than once")
        if self.num_too_long:
            lines.append(
                f"skipped {self.num_too_long} prompts that are too long: the model's context of {self._context_len} "
                f"needs 1 to {self._context_len - 1} tokens so that one can follow"
            )
        if self.num_usable < 2:
            raise UsageError(
                f"{self.num_usable} of {self.num_seen} prompts are usable; heads need at least 2, one to train on and "
                "one held out: give more prompts that fit the model's context"
            )
        return self.num_usable, lines


def hash_ids(sequences: Iterable[list[int]]) -> str:
    """A 16-digit hash of token id sequences."""
    return short_hash(*(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype="<i4").tobytes() for ids in sequences))
