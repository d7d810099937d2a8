"""Conversations in a data file: a list of messages in a row, checked before a chat template sees it."""

import difflib
from typing import Any

from adadecode.errors import PromptError
from adadecode.printable import is_unicode
from adadecode.records import Message
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import Row

ROLES = ("system", "developer", "user", "assistant", "tool")
REMEDY = f"messages are objects with a `role` ({', '.join(ROLES)}) and a text `content`, the last of them a user's"


def conversation(row: Row, field: str) -> tuple[Message, ...]:
    """The messages in `field`, the last a user's. Raises PromptError, which says which message is malformed and how."""
    found = row.value(field)
    if not isinstance(found, list) or not found:
        raise PromptError(f"{row.where}: field {field!r} is {shown(found)}, no list of messages; {REMEDY}")
    messages = tuple(_message(value, f"{row.where}: message {idx} of {field!r}") for idx, value in enumerate(found))
    if messages[-1].role != "user":
        last = messages[-1].role
        raise PromptError(f"{row.where}: the last message of {field!r} is of role {last!r}, not `user`; {REMEDY}")
    return messages


def _message(value: Any, name: str) -> Message:
    """The message that `value` is; raises PromptError, which begins with `name`, if it is none."""
    if not isinstance(value, dict):
        raise PromptError(f"{name} is {shown(value)}, not an object; {REMEDY}")
    others = [key for key, inner in value.items() if key not in ("role", "content") and inner is not None]
    if others:
        raise PromptError(f"{name} has {shown(others[0])} beside its role and content, which is not used; leave it out")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        close = difflib.get_close_matches(role, ROLES, n=1) if isinstance(role, str) else []
        meant = f"did you mean {close[0]}? " if close else ""
        raise PromptError(f"{name} has the role {shown(role)}; {meant}{REMEDY}")
    if not isinstance(content, str) or not content.strip() or not is_unicode(content):
        raise PromptError(f"{name} has the content {shown(content)}, no text; {REMEDY}")
    return Message(role, content)
