"""The prompts heads are trained on, one after another: which are usable, and in which chunks their outputs are made."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from adadecode.errors import PromptError, UsageError
from adadecode.files import short_hash
from adadecode.settings import TrainConfig
from adadecode.tasks import expand_task, iterate_found
from adadecode.tasks.encode import check_ids
from adadecode.tasks.usable import LeftOut, encode_found


class Chunk(NamedTuple):
    """Prompts whose outputs are stored together, as part `part_idx`."""

    part_idx: int
    prompts: list[list[int]]


class TaskPrompts:
    """Token ids of the prompts `config` names, read and encoded anew each time they are iterated over.

    In place of a prompt that a model of that context and vocabulary cannot use comes the error that says why.
    """

    def __init__(
        self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, context_len: int, vocab_size: int
    ) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._context_len, self._vocab_size = context_len, vocab_size

    def __iter__(self) -> Iterator[list[int] | PromptError]:
        for task in expand_task(self._config.task):
            found = iterate_found(task, self._config)
            for prompt in encode_found(self._tokenizer, task, found, self._context_len, self._vocab_size):
                yield prompt if isinstance(prompt, PromptError) else prompt.token_ids


class UsablePrompts:
    """The prompts a model of that context and vocabulary can continue, each once: none is both trained on and held out.

    Iterating again gives the same; of all prompts only a hash is kept, and that only meanwhile.
    """

    def __init__(self, prompts: Iterable[list[int] | PromptError], context_len: int, vocab_size: int) -> None:
        self._prompts, self._context_len, self._vocab_size = prompts, context_len, vocab_size
        self._left_out, self._num_usable, self._num_repeated = LeftOut(), 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        self._left_out, self._num_usable, self._num_repeated = LeftOut(), 0, 0
        seen: set[bytes] = set()
        for prompt_ids in self._left_out.keep(self._checked()):
            digest = hash_ids([prompt_ids]).encode()
            if digest in seen:
                self._num_repeated += 1
            else:
                seen.add(digest)
                self._num_usable += 1
                yield prompt_ids

    def _checked(self) -> Iterator[list[int] | PromptError]:
        for idx, prompt in enumerate(self._prompts):
            try:
                if not isinstance(prompt, PromptError):
                    check_ids(prompt, self._context_len, self._vocab_size)
                yield prompt
            except PromptError as error:
                yield PromptError(f"prompt {idx}: {error}")

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
        """How many there are, and lines that say what is left out and why; raises UsageError below two."""
        for _ in self:
            pass
        lines = self._left_out.lines()
        if self._num_usable < 2:
            few = f"{self._num_usable} of {self._left_out.num_seen} prompts are usable"
            raise UsageError("; ".join([few, "heads need at least 2, one to train on and one held out", *lines]))
        if self._num_repeated:
            lines.append(f"skipped {self._num_repeated} prompts that occur more than once")
        return self._num_usable, lines


def hash_ids(sequences: Iterable[list[int]]) -> str:
    """A 16-digit hash of token id sequences."""
    return short_hash(*(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype="<i4").tobytes() for ids in sequences))
