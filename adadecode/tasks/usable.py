"""Prompts that can be decoded, and how many were left out: one that cannot be used does not end a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from adadecode.errors import PromptError, UsageError
from adadecode.records import Prompt, Say
from adadecode.tasks.encode import usable_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from transformers import PreTrainedTokenizerBase

    from adadecode.tasks.task import Found

T = TypeVar("T")


class LeftOut:
    """Counts the prompts that cannot be used and keeps why the first cannot."""

    def __init__(self) -> None:
        self.num_seen = self.num = 0
        self._first = ""

    def keep(self, found: Iterable[T | PromptError]) -> Iterator[T]:
        """Yields what can be used of `found`, and counts it all."""
        for one in found:
            self.num_seen += 1
            if isinstance(one, PromptError):
                self.num += 1
                self._first = self._first or str(one)
            else:
                yield one

    def lines(self) -> list[str]:
        """One line that counts them and says why the first cannot be used; none when all can."""
        which = "" if self.num == 1 else ", the first"
        return [f"{self.num} of {self.num_seen} prompts left out{which}: {self._first}"] if self.num else []


def encode_found(
    tokenizer: PreTrainedTokenizerBase, task: str, found: Iterable[Found], context_len: int, vocab_size: int
) -> Iterator[Prompt | PromptError]:
    """Yields the prompts of what was found for `task`; for one that cannot be used the error that names it and says why."""
    for example in found:
        if isinstance(example, PromptError):
            yield example
            continue
        try:
            yield Prompt(task, example.sample_id, usable_ids(tokenizer, example, context_len, vocab_size))
        except PromptError as error:
            yield PromptError(f"{task}/{example.sample_id}: {error}")


def usable_prompts(
    tokenizer: PreTrainedTokenizerBase,
    found: Mapping[str, Iterable[Found]],
    context_len: int,
    vocab_size: int,
    say: Say,
) -> list[Prompt]:
    """The prompts of what was `found` for each task; how many are left out, and why, is said.

    Raises UsageError, with the reason, when none is left.
    """
    left_out = LeftOut()
    prompts = [
        prompt
        for task, of_task in found.items()
        for prompt in left_out.keep(encode_found(tokenizer, task, of_task, context_len, vocab_size))
    ]
    if not prompts:
        raise UsageError("; ".join(["no prompt can be used", *left_out.lines()]))
    for line in left_out.lines():
        say(line)
    return prompts
