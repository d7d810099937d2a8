"""The kinds of servers, a row each: how one is told from others, asked for token ids, and where it puts them.

All take `POST /v1/completions` and `/v1/chat/completions` as OpenAI defined them; ids are an extension of each.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adadecode.settings import ApiName

Part = Mapping[str, Any]  # a JSON object of a stream


def no_ids(choice: Part, chunk: Part) -> object:
    """None: the server gives no ids."""
    return None


@dataclass(frozen=True)
class Extension:
    """What a kind of server is asked for beyond what OpenAI defined, and where it puts that.

    `fields` gives the further fields of a request: ids are asked for, and that no cache of earlier prompts is used, which
    would make later passes faster than the first. `ids` and `prompt_ids` find ids in a choice of a chunk, empty where a
    chunk has none, or in the chunk; what they find is checked by whoever asks.
    """

    fields: Callable[[], dict[str, Any]] = dict
    ids: Callable[[Part, Part], object] = no_ids
    prompt_ids: Callable[[Part, Part], object] = no_ids

    @property
    def gives_ids(self) -> bool:
        """Whether token ids are asked for."""
        return self.ids is not no_ids


@dataclass(frozen=True)
class ServerKind:
    """One kind of server.

    `owned_by` is what its `/v1/models` says of each model. `completions` and `chat` extend the APIs of these names.
    `drafts` finds in a chunk how many tokens were drafted and how many of them accepted.
    """

    name: str
    owned_by: str | None
    completions: Extension
    chat: Extension
    drafts: Callable[[Part], tuple[object, object]] = lambda chunk: (None, None)

    def extension(self, api: ApiName) -> Extension:
        """How the API called `api` is extended."""
        return self.chat if api == "chat" else self.completions


def _part(chunk: Part, name: str) -> Part:
    """The object `name` of `chunk`; an empty one where there is none."""
    found = chunk.get(name)
    return found if isinstance(found, dict) else {}


def _verbose_ids(choice: Part, chunk: Part) -> object:
    return _part(chunk, "__verbose").get("tokens")


def _timed_drafts(chunk: Part) -> tuple[object, object]:
    timings = _part(chunk, "timings")
    return timings.get("draft_n"), timings.get("draft_n_accepted")


def _salt() -> dict[str, Any]:
    """A salt of its own: a prompt with another salt shares nothing that is cached."""
    return {"cache_salt": uuid.uuid4().hex}


def _token_ids(choice: Part, chunk: Part) -> object:
    return choice.get("token_ids")


def _prompt_token_ids(choice: Part, chunk: Part) -> object:
    """The prompt's ids, which vLLM puts into a choice of a completion and beside the choices of a chat."""
    return choice.get("prompt_token_ids", chunk.get("prompt_token_ids"))


def _final_ids(choice: Part, chunk: Part) -> object:
    """All ids of the first choice, in one chunk at the end: a list of ids for each choice."""
    found = _part(chunk, "sglext").get("output_ids")
    return found[0] if isinstance(found, list) and found else found


def _final_prompt_ids(choice: Part, chunk: Part) -> object:
    return _part(chunk, "sglext").get("input_ids")


IDS_IN_CHOICES = Extension(lambda: {"return_token_ids": True, **_salt()}, _token_ids, _prompt_token_ids)

OTHER = ServerKind("other", None, Extension(), Extension())

SERVERS: dict[str, ServerKind] = {
    row.name: row
    for row in (
        ServerKind(
            "llama.cpp",
            "llamacpp",
            completions=Extension(lambda: {"verbose": True, "cache_prompt": False}, _verbose_ids),
            chat=Extension(lambda: {"cache_prompt": False}),  # its chat streams have ids of no token that was drafted
            drafts=_timed_drafts,
        ),
        ServerKind("vllm", "vllm", completions=IDS_IN_CHOICES, chat=IDS_IN_CHOICES),
        ServerKind(
            "sglang",
            "sglang",
            completions=IDS_IN_CHOICES,
            chat=Extension(  # return_token_ids is refused in a chat stream
                lambda: {"return_output_ids_in_sglext": True, "return_input_ids_in_sglext": True, **_salt()},
                _final_ids,
                _final_prompt_ids,
            ),
        ),
        OTHER,
    )
}


def kind_of(owned_by: object) -> ServerKind:
    """The kind of server whose models are `owned_by`; `other` for what is not in the table."""
    return next((row for row in SERVERS.values() if row.owned_by is not None and row.owned_by == owned_by), OTHER)
