"""Token ids of a task's prompts, and the text of its outputs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from adadecode.errors import PromptError, PromptTooLongError, UnknownTokenError, UsageError, is_rust_panic
from adadecode.printable import is_unicode, on_one_line
from adadecode.scoring.stops import until

if TYPE_CHECKING:
    from collections.abc import Generator

    from transformers import PreTrainedTokenizerBase

    from adadecode.records import Example, Generation
    from adadecode.settings import EvalConfig


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of `example`: its messages, the last the user's, when there is a chat template, else its prompt.

    The template writes its own special tokens; without one the tokenizer adds those it adds to any text. Raises
    PromptError for a conversation without a template.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer(_plain_prompt(example)).input_ids)
    token_ids = tokenizer.apply_chat_template(
        _messages(example), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return cast("list[int]", token_ids)


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The text whose tokens `encode_prompt` gives: what the chat template makes of `example`, or its plain prompt.

    Raises PromptError where template or tokenizer cannot take it.
    """
    with _explained(tokenizer):
        if tokenizer.chat_template is None:
            return _plain_prompt(example)
        text = tokenizer.apply_chat_template(_messages(example), add_generation_prompt=True, tokenize=False)
        return cast("str", text)


def plain_text(example: Example) -> str:
    """The plain prompt of `example`; of a conversation, which has none, each message after its role."""
    return example.prompt or "\n".join(f"{message.role}: {message.content}" for message in example.messages)


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]


def _plain_prompt(example: Example) -> str:
    if example.context and not example.prompt:
        raise PromptError(
            "the prompt is a conversation, and the model's tokenizer has no chat template to write it with: give a model "
            "that has one, or plain prompts"
        )
    return example.prompt


@contextlib.contextmanager
def _explained(tokenizer: PreTrainedTokenizerBase) -> Generator[None]:
    """Makes a PromptError of whatever template and tokenizer raise."""
    try:
        yield
    except PromptError:
        raise
    except BaseException as error:
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_rust_panic(error)):
            raise
        what = "tokenizer" if tokenizer.chat_template is None else "chat template"
        raise PromptError(
            f"the model's {what} cannot take the prompt ({type(error).__name__}: {on_one_line(error)}): change the prompt "
            f"or the {what}"
        ) from error


def usable_ids(tokenizer: PreTrainedTokenizerBase, example: Example, context_len: int, vocab_size: int) -> list[int]:
    """What `encode_prompt` gives, when a model of that context and vocabulary can continue it.

    Raises PromptError, also as PromptTooLongError and UnknownTokenError, when the prompt cannot be used: whatever template
    and tokenizer raise.
    """
    token_ids = encode_usable(tokenizer, example)
    check_ids(token_ids, context_len, vocab_size)
    return token_ids


def encode_usable(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """What `encode_prompt` gives, of any length; raises PromptError, whatever template and tokenizer raise."""
    if not is_unicode(example.prompt):
        raise PromptError("the prompt is not valid Unicode: give text in UTF-8")
    with _explained(tokenizer):
        return encode_prompt(tokenizer, example)


def check_ids(token_ids: list[int], context_len: int, vocab_size: int) -> None:
    """Raises PromptTooLongError unless a token can follow `token_ids`, and UnknownTokenError unless all are known."""
    if not 1 <= len(token_ids) < context_len:
        raise PromptTooLongError.of(len(token_ids), context_len)
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise UnknownTokenError.of(min(token_ids), max(token_ids), vocab_size)


def check_stops(config: EvalConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UsageError where the stop strings of tasks are wanted and prompts go through a chat template."""
    if config.task_stops and tokenizer.chat_template is not None:
        raise UsageError(
            f"--task-stops: they end plain prompts, and model {config.model!r} has a chat template, whose answers end by "
            "themselves: drop it, or give --stop-strings"
        )


def decode_output(tokenizer: PreTrainedTokenizerBase, generation: Generation, stops: tuple[str, ...] = ()) -> str:
    """The text of what was generated, without what ended it: an end-of-sequence token, or the first of `stops` in it."""
    ends = generation.finish_reason == "eos"
    return until(cast("str", tokenizer.decode(list(generation.output_token_ids[: -1 if ends else None]))), stops)
