"""Heads of a relative: made for another model's weights, which verification makes safe and only their speed tells of."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from adadecode.errors import ExitHeadsError
from adadecode.model.decoder import DecoderModel
from adadecode.printable import on_one_line

FLAG = "--foreign-heads"


def check_made_for(
    named: str, made_for: object, model: DecoderModel, remedy: str, *, allows_foreign: bool, whose: str | None = None
) -> str | None:
    """None where what is `named` was made for the weights `made_for` that `model` has, else those where foreign is allowed.

    Raises ExitHeadsError for other weights where it is not, `whose` those of, with the flag that allows it as a remedy.
    """
    if made_for == model.model_hash:
        return None
    if allows_foreign and isinstance(made_for, str):
        return made_for
    of = f"{whose!r} with weights" if whose else "weights"
    raise ExitHeadsError(
        f"{named}: made for {of} {on_one_line(made_for, 40)}, this model's are {model.model_hash}; {remedy}, or give "
        f"{FLAG} where it is a relative, such as a fine-tune"
    )


def check_sizes(named: str, width: int, vocab_size: int | None, model: DecoderModel, remedy: str) -> None:
    """Raises ExitHeadsError unless foreign heads are known to have the width and the vocabulary of `model`."""
    if width == model.width and vocab_size is None:
        raise ExitHeadsError(
            f"{named}: made for a vocabulary that they do not tell, so that {FLAG} cannot allow them; {remedy}, or add "
            f"its vocab_size to their facts where it is known to be this model's {model.vocab_size}"
        )
    if width != model.width or vocab_size != model.vocab_size:
        tokens = "" if vocab_size is None else f" and {vocab_size} tokens"
        raise ExitHeadsError(
            f"{named}: made for a model of width {width}{tokens}, this one has width {model.width} and "
            f"{model.vocab_size} tokens, so that {FLAG} cannot help; {remedy}"
        )


class MadeFor(Protocol):
    """Heads that know whether they were made for another model's weights."""

    @property
    def made_for(self) -> str | None: ...


def made_for_others(heads: Mapping[str, MadeFor]) -> dict[str, str]:
    """By task the weights that its heads were made for, where those are another model's."""
    return {task: one.made_for for task, one in heads.items() if one.made_for is not None}


def foreign_facts(heads: Mapping[str, MadeFor], medusa: Mapping[str, MadeFor] = MappingProxyType({})) -> dict[str, Any]:
    """What run.json says of foreign heads, the weights each task's were made for; nothing where none are foreign."""
    named = {"foreign_heads": made_for_others(heads), "foreign_medusa_heads": made_for_others(medusa)}
    return {name: of for name, of in named.items() if of}
