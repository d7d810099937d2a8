"""One request for the greedy output of one sample."""

from dataclasses import dataclass
from typing import Any

from adadecode.certify.apis import Api
from adadecode.certify.servers import Extension, ServerKind
from adadecode.records import Example


@dataclass(frozen=True)
class Request:
    """What is asked of a server of `kind` by `api`: at most `max_new_tokens` tokens after `example`'s first turn."""

    api: Api
    kind: ServerKind
    model: str
    example: Example
    max_new_tokens: int

    @property
    def extension(self) -> Extension:
        """What the kind of server adds to the API."""
        return self.kind.extension(self.api.name)

    def body(self) -> dict[str, Any]:
        """The request as JSON."""
        return {
            "model": self.model,
            **self.api.asked(self.example),
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extension.fields(),
        }
