"""What stands before a sample's own prompt: a system prompt, and worked examples ("shots")."""

from dataclasses import dataclass, replace

from adadecode.errors import PromptError
from adadecode.records import Example, Message
from adadecode.tasks.rows import Row

SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Shot:
    """A worked example: a sample, what follows its plain prompt, and what answers its chat prompt."""

    example: Example
    answer: str
    chat_answer: str


def with_context(row: Row, example: Example, shots: tuple[Shot, ...], system_prompt: str | None) -> Example:
    """`example` after the system prompt and the shots, as lm-evaluation-harness orders them.

    In the plain prompt empty lines part them; in a conversation a shot is a user's message and the assistant's answer.
    Raises PromptError for a sample that is among the shots, and for a conversation that has a system message of its own.
    """
    if system_prompt is None and not shots:
        return example
    if any(shot.example.chat_prompt == example.chat_prompt for shot in shots):
        raise PromptError(
            f"{row.where}: the sample is among the worked examples, which tell its answer; leave it out with --offset, "
            "or give other rows with --shots-file"
        )
    if system_prompt is not None and any(message.role in SYSTEM_ROLES for message in example.context):
        raise PromptError(f"{row.where}: its messages have a system message of their own; drop --system-prompt")
    system = [] if system_prompt is None else [system_prompt]
    solved = [shot.example.prompt + shot.answer for shot in shots]
    context = [Message("system", text) for text in system]
    for shot in shots:
        context += [Message("user", shot.example.chat_prompt), Message("assistant", shot.chat_answer)]
    return replace(
        example,
        prompt="\n\n".join([*system, *solved, example.prompt]) if example.prompt else "",
        context=(*context, *example.context),
    )
