"""On which nodes of a cluster workers may be: a selector of labels, as Ray has them."""

import re
from typing import Annotated

from pydantic import AfterValidator

from adadecode.settings.fields import Flag

NAME = "[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # of a key or a value, by Kubernetes' rules
PART = re.compile(rf"({NAME}(?:/{NAME})?)=(!?)(?:({NAME})|in\(({NAME}(?: *, *{NAME})*)\))")
COMMA = re.compile(r" *,(?![^(]*\)) *")  # but those between parentheses
FORM = "give KEY=VALUE, several with commas, such as ray.io/accelerator-type=H100; VALUE may be !VALUE, in(A,B) or !in(A,B)"

Selector = dict[str, str]  # by label what its value must be, in Ray's words


def parsed_selector(text: str) -> Selector:
    """What `text`, the value of --label-selector, asks of each label; raises ValueError where it is none."""
    selector: Selector = {}
    for part in COMMA.split(text.strip()):
        found = PART.fullmatch(part)
        if found is None or found[1] in selector:
            raise ValueError(FORM if found is None else f"{found[1]} is there twice; {FORM}")
        key, negation, value, values = found.groups()
        selector[key] = f"{negation}{value}" if value else f"{negation}in({','.join(re.split(' *, *', values))})"
    return selector


def allowed_values(condition: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a condition of a selector names the values that may be, not those that may not, and which they are."""
    values = condition.removeprefix("!")
    listed = values[len("in(") : -1] if values.endswith(")") else values
    return not condition.startswith("!"), tuple(listed.split(","))


def checked_selector(text: str | None) -> str | None:
    """`text`; raises ValueError unless it is a selector."""
    if text is not None:
        parsed_selector(text)
    return text


LabelSelector = Annotated[
    str | None, Flag(unset="every node that has what a worker takes"), AfterValidator(checked_selector)
]
SELECTOR_TEXT = "Only nodes with these labels of Ray's, such as ray.io/accelerator-type=H100."
