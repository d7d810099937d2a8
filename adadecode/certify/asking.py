"""Who is asked and with how much patience: what a server is and serves, and one prompt with a bounded number of tries."""

import difflib
import threading
from dataclasses import dataclass
from typing import Any

from adadecode.certify.endpoint import Address, Endpoint
from adadecode.certify.failures import BAD_ANSWER, DOWN, REFUSED, ServerError
from adadecode.certify.request import Request
from adadecode.certify.servers import SERVERS, ServerKind, kind_of
from adadecode.certify.stream import Completion
from adadecode.errors import UsageError
from adadecode.printable import on_one_line
from adadecode.settings import ServerName

FIRST_PAUSE_S = 0.25  # before the second try; each later one twice as long
LONGEST_PAUSE_S = 60.0  # also of what a server asks for: past it the request has failed
MAX_SHOWN = 5  # models that a line names


@dataclass(frozen=True)
class Served:
    """A server that was found: of which kind it is, and the model it is asked for."""

    endpoint: Endpoint
    kind: ServerKind
    model: str


def ask(endpoint: Endpoint, request: Request, retries: int, stopping: threading.Event) -> Completion:
    """The output that `request` asks for, at the first of 1 + `retries` tries that gives one; raises ServerError.

    A server that was gone at the last try of another prompt has one try, until it answers. `stopping` ends a pause.
    """
    num_tries = 1 if endpoint.is_down else 1 + retries
    for num_failed in range(1, num_tries + 1):
        try:
            found = endpoint.complete(request)
        except ServerError as error:
            pause_s = FIRST_PAUSE_S * 2 ** (num_failed - 1) if error.retry_after_s is None else error.retry_after_s
            is_last = num_failed == num_tries or not error.may_be_mended or pause_s > LONGEST_PAUSE_S
            if is_last or stopping.wait(pause_s):
                endpoint.is_down = error.kind in DOWN
                raise ServerError(error.kind, _after(error, num_failed)) from None
        else:
            endpoint.is_down = False
            return found
    raise AssertionError(num_tries)


def _after(error: ServerError, num_failed: int) -> str:
    """The message of the last of `num_failed` tries."""
    asked = f"; it asks to wait {error.retry_after_s:g} s" if (error.retry_after_s or 0) > LONGEST_PAUSE_S else ""
    return f"{error}{asked}" + (f" (at the last of {num_failed} tries)" if num_failed > 1 else "")


def look(endpoint: Endpoint, role: str, model: str | None, server: ServerName) -> Served:
    """What the server of `role` is and serves, `model` if it is given; raises UsageError where it cannot be asked."""
    entries = _models(endpoint, role)
    names = [entry["id"] for entry in entries]
    if model is None and len(names) > 1:
        raise UsageError(f"{endpoint.address} serves {_listed(names)}: choose one with --{role}-model")
    if model is not None and model not in names:
        close = difflib.get_close_matches(model, names, n=1)
        remedy = f"did you mean {on_one_line(close[0])!r}?" if close else f"it serves {_listed(names)}"
        raise UsageError(f"--{role}-model {model!r}: {endpoint.address} has no such model; {remedy}")
    found = entries[0] if model is None else entries[names.index(model)]
    kind = kind_of(found.get("owned_by")) if server == "auto" else SERVERS[server]
    return Served(endpoint, kind, found["id"])


def _models(endpoint: Endpoint, role: str) -> list[dict[str, Any]]:
    """The entries of the server's list of models, each with a name; raises UsageError."""
    try:
        listed = endpoint.get("models")
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise ServerError(BAD_ANSWER, "the answer has no list of models")
    except ServerError as error:
        raise UsageError(_no_endpoint(endpoint.address, role, error)) from None
    found = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if not found:
        raise UsageError(f"{endpoint.address} serves no model: load one")
    return found


def _no_endpoint(address: Address, role: str, error: ServerError) -> str:
    """The line about an address at which no OpenAI-compatible server can be asked."""
    if error.kind == REFUSED and str(error).startswith(("status 401", "status 403")):
        return f"{address} asks for a key ({error}): set {key_variable(role)}"
    if error.kind in (REFUSED, BAD_ANSWER):
        return (
            f"{address} is no OpenAI-compatible endpoint: GET /models gave {error}; give the URL whose /v1/completions "
            "completes prompts or, with --api chat, whose /v1/chat/completions answers them"
        )
    return f"{address} does not answer: {error}; check the URL, and whether the server is up"


def key_variable(role: str) -> str:
    """The environment variable that holds the API key for the server of `role`."""
    return f"ADADECODE_{role.upper()}_API_KEY"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(on_one_line(name) for name in names[:MAX_SHOWN]) + more
