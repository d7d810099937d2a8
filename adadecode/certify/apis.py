"""The two ways in which OpenAI-compatible servers are asked: to continue a plain prompt, or to answer a conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adadecode.records import Example
from adadecode.settings import ApiName

REASONING = ("reasoning_content", "reasoning")  # a server gives its model's thoughts by one of these names, or by both
SAID = ("content", "refusal")


@dataclass(frozen=True)
class Api:
    """One way to ask. `asked` is what a request says of a sample; `text` finds the text in a choice of a chunk.

    What `text` finds is checked by whoever asks; None says that the choice has no text of this form.
    """

    name: ApiName
    path: str  # below /v1
    asked: Callable[[Example], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], object]


def _delta_text(choice: Mapping[str, Any]) -> object:
    """The text in the delta of a chat chunk, thoughts too; empty in one that tells only a role or the end."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or delta.get("tool_calls"):
        return None
    thought = next((delta[name] for name in REASONING if delta.get(name) is not None), "")
    parts = [thought, *(delta[name] for name in SAID if delta.get(name) is not None)]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


COMPLETIONS = Api(
    "completions",
    "completions",
    asked=lambda example: {"prompt": example.prompt},
    text=lambda choice: choice.get("text"),
)
CHAT = Api(
    "chat",
    "chat/completions",
    asked=lambda example: {
        "messages": [{"role": message.role, "content": message.content} for message in example.messages]
    },
    text=_delta_text,
)
APIS: dict[ApiName, Api] = {api.name: api for api in (COMPLETIONS, CHAT)}
