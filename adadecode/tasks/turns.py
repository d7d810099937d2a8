"""Conversations that are decoded turn by turn: what each turn's prompt is, given the answers before it."""

from collections.abc import Sequence
from dataclasses import replace

from adadecode.records import Example, Message


def plain_turn(said: str) -> str:
    """What the user said, as text that a base model answers."""
    return f"USER: {said}\nASSISTANT:"


def at_turn(example: Example, answers: Sequence[str]) -> Example:
    """`example` at the turn after `answers`, one for each turn before it: itself at the first.

    In the plain prompt an answer stands as it came, and an empty line before the next turn.
    """
    context, said, prompt = [*example.context], example.chat_prompt, example.prompt
    for answer, later in zip(answers, example.later_turns, strict=False):
        context += [Message("user", said), Message("assistant", answer)]
        said, prompt = later, f"{prompt}{answer}\n\n{plain_turn(later)}"
    return replace(example, prompt=prompt, chat_prompt=said, context=tuple(context))
