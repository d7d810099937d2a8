"""The prompts of samples as a model is given them, to be looked at before anything is decoded."""

from dataclasses import dataclass

from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks import expand_task, load_examples
from adadecode.tasks.encode import encode_prompt, plain_text, prompt_text


@dataclass(frozen=True)
class ShownPrompt:
    """The prompt of one sample as a model is given it; `num_tokens` is None where no model was named.

    Of a conversation that is decoded turn by turn it is the first turn's; `example` has what is said later.
    """

    task: str
    example: Example
    text: str
    kind: str  # `plain prompt`, `chat template`, or `messages` where there is no plain one
    num_tokens: int | None


def show_prompts(settings: DataSettings, model: str | None = None) -> list[ShownPrompt]:
    """The prompts of the samples that `settings` name, in their order; loads no weights.

    Without `model` the plain ones, and conversations, which have none, a line for each message; with a model what its
    chat template makes of them, if it has one. Raises UsageError, also as PromptError of the first that cannot be used.
    """
    examples = [(task, example) for task in expand_task(settings.task) for example in load_examples(task, settings)]
    if model is None:
        return [
            ShownPrompt(task, one, plain_text(one), "plain prompt" if one.prompt else "messages", None)
            for task, one in examples
        ]
    from adadecode.model.load import load_tokenizer

    _, tokenizer = load_tokenizer(model)
    kind = "plain prompt" if tokenizer.chat_template is None else "chat template"
    return [
        ShownPrompt(task, one, prompt_text(tokenizer, one), kind, len(encode_prompt(tokenizer, one)))
        for task, one in examples
    ]
