"""The kinds of servers, a row each: how one is told from others, asked for token ids, and where it puts them.

All take `POST /v1/completions` as OpenAI defined it; ids are an extension of each.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Part = Mapping[str, Any]  # a JSON object of a stream


def no_ids(choice: Part, chunk: Part) -> object:
    """None: the server gives no ids."""
    return None


@dataclass(frozen=True)
class ServerKind:
    """One kind of server.

    `owned_by` is what its `/v1/models` says of each model. `extension` gives the further fields of a request: ids are asked
    for, and that no cache of earlier prompts is used, which would make later passes faster than the first. `ids` and
    `prompt_ids` find ids in a choice of a chunk or in the chunk; what they find is checked by whoever asks. `drafts` finds
    how many tokens were drafted and how many of them accepted.
    """

    name: str
    owned_by: str | None
    extension: Callable[[], dict[str, Any]]
    ids: Callable[[Part, Part], object] = no_ids
    prompt_ids: Callable[[Part, Part], object] = no_ids
    drafts: Callable[[Part], tuple[object, object]] = lambda chunk: (None, None)


def _part(chunk: Part, name: str) -> Part:
    """The object `name` of `chunk`; an empty one where there is none."""
    found = chunk.get(name)
    return found if isinstance(found, dict) else {}


def _verbose_ids(choice: Part, chunk: Part) -> object:
    return _part(chunk, "__verbose").get("tokens")


def _timed_drafts(chunk: Part) -> tuple[object, object]:
    timings = _part(chunk, "timings")
    return timings.get("draft_n"), timings.get("draft_n_accepted")


def _salted() -> dict[str, Any]:
    """Ids, and a salt of its own: a prompt with another salt shares nothing that is cached."""
    return {"return_token_ids": True, "cache_salt": uuid.uuid4().hex}


def _token_ids(choice: Part, chunk: Part) -> object:
    return choice.get("token_ids")


def _prompt_token_ids(choice: Part, chunk: Part) -> object:
    return choice.get("prompt_token_ids")


OTHER = ServerKind("other", None, dict)

SERVERS: dict[str, ServerKind] = {
    row.name: row
    for row in (
        ServerKind(
            "llama.cpp",
            "llamacpp",
            lambda: {"verbose": True, "cache_prompt": False},
            ids=_verbose_ids,
            drafts=_timed_drafts,
        ),
        ServerKind("vllm", "vllm", _salted, ids=_token_ids, prompt_ids=_prompt_token_ids),
        ServerKind("sglang", "sglang", _salted, ids=_token_ids, prompt_ids=_prompt_token_ids),
        OTHER,
    )
}


def kind_of(owned_by: object) -> ServerKind:
    """The kind of server whose models are `owned_by`; `other` for what is not in the table."""
    return next((row for row in SERVERS.values() if row.owned_by is not None and row.owned_by == owned_by), OTHER)
