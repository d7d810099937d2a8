"""Token ids of a task's prompts, and the text of its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadecode.records import Example, Generation


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of `example`: its chat prompt as the user's turn when there is a chat template, else its prompt.

    The template writes its own special tokens; without one the tokenizer adds those it adds to any text.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer(example.prompt).input_ids)
    turns = [{"role": "user", "content": example.chat_prompt}]
    token_ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return cast("list[int]", token_ids)


def decode_output(tokenizer: PreTrainedTokenizerBase, generation: Generation) -> str:
    """The text of what was generated, without the end-of-sequence token that may end it."""
    ends = generation.finish_reason == "eos"
    return cast("str", tokenizer.decode(list(generation.output_token_ids[: -1 if ends else None])))
