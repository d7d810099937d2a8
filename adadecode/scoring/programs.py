"""Programs made of what a model wrote: what of an output is code, and the tests that follow it.

The reference of a sample that is scored by running it is JSON, made here, so that a stored row has all that a score takes.
"""

import json
import re
from typing import NamedTuple

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n", re.MULTILINE)
FENCE_END = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)


class CodeReference(NamedTuple):
    """What an output is run with: the `tests` after it and, where it completes one, the `prompt` with its function.

    `entry_point` is the name of that function.
    """

    tests: str
    prompt: str = ""
    entry_point: str | None = None

    def to_text(self) -> str:
        """The text that stands in the column `reference`."""
        return json.dumps(self._asdict())

    @classmethod
    def of(cls, text: str) -> "CodeReference":
        """The reference that a column's text holds; raises ValueError where it holds none."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.keys() != set(cls._fields):
            raise ValueError("the reference holds no tests, as those of code do")
        return cls(**found)


def unfenced(text: str, entry_point: str | None = None) -> str | None:
    """The code of the fenced block in a chat's answer; None where there is no block.

    Of several the first that defines `entry_point`, else the first. A block that is not closed, as at the end of the
    tokens, goes to the end.
    """
    blocks: list[str] = []
    at = 0
    while (opened := FENCE.search(text, at)) is not None:
        closed = FENCE_END.search(text, opened.end())
        blocks.append(text[opened.end() : len(text) if closed is None else closed.start()])
        at = len(text) if closed is None else closed.end()
    defining = [block for block in blocks if entry_point is not None and definition(block, entry_point) is not None]
    return next(iter(defining or blocks), None)


def definition(code: str, name: str) -> int | None:
    """Where `code` begins to define the function `name` at its outermost level; None where it does not."""
    found = re.search(rf"^(async[ \t]+)?def[ \t]+{re.escape(name)}\b", code, re.MULTILINE)
    return None if found is None else found.start()
