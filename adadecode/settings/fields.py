"""What every group of settings is made of: fields that flags and files fill in alike."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from adadecode.printable import has_password, is_unicode

# Settings that say where something is; they are stored with a run and shown.
PLACES = {
    *("model", "revision", "heads", "data_file", "shots_file", "outputs", "policy", "address"),
    *("draft_model", "draft_revision", "medusa_heads"),
}


@dataclass(frozen=True)
class Flag:
    """What a flag cannot tell from its field: another `name`, and what it stands for when it is `unset`.

    The texts of one that `is_verbatim` are taken as they stand, commas and spaces too: it is given once for each.
    """

    name: str | None = None
    unset: str | None = None
    is_verbatim: bool = False


def is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether `value` is a mapping, as settings in YAML are; its keys are taken for their names."""
    return isinstance(value, dict)


def flag_name(name: str, field: FieldInfo) -> str:
    """The flag that gives setting `name`, such as `--max-drafts`: the name its `Flag` has, if any, else its own."""
    named = next((given.name for given in field.metadata if isinstance(given, Flag)), None)
    return "--" + (named or name).replace("_", "-")


def members(annotation: Any) -> Iterator[Any]:
    """The types an annotation allows beside None, what they are annotated with left out."""
    if get_origin(annotation) is Annotated:
        yield from members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from members(part)
    elif annotation is not type(None):
        yield annotation


def is_verbatim(field: FieldInfo) -> bool:
    """Whether each text given for a setting is one of its values, as it stands."""
    return any(given.is_verbatim for given in field.metadata if isinstance(given, Flag))


class Settings(BaseModel):
    """Values that stay as they were checked; a name that is not a setting is refused, and so is a number without end."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_a_flag_has_it(cls, value: Any, info: ValidationInfo) -> Any:
        """`value`, split where it is text with commas for a list; raises ValueError for a boolean where none is meant."""
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        kinds = list(members(field.annotation))
        parts: list[object] = [*cast("list[object]", value)] if isinstance(value, list | tuple) else [value]
        if bool not in kinds and any(isinstance(part, bool) for part in parts):
            raise ValueError(f"true and false mean nothing here{nothing_means(field)}")
        if not all(is_unicode(part) and "\0" not in part for part in parts if isinstance(part, str)):
            raise ValueError("it has a character that no text has")
        if info.field_name in PLACES and isinstance(value, str) and has_password(value):
            raise ValueError("give no user name or password in it, for it is stored and shown: tokens have variables")
        if is_verbatim(field):
            return (value,) if isinstance(value, str) else cast("object", value)
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"empty text is no value of it: leave it out, or give one{nothing_means(field)}")
        if not isinstance(value, str) or str in kinds:
            return cast("object", value)
        if value.lower() in NOTHINGS and (meaning := nothing_means(field)):
            raise ValueError(f"is no value of it{meaning}")
        if any(get_origin(kind) is tuple for kind in kinds):
            split = tuple(part.strip() for part in value.split(","))
            return split[0] if len(split) == 1 and len(kinds) > 1 else split
        return value


NOTHINGS = {"no", "off", "none", "false", "n"}


def nothing_means(field: FieldInfo) -> str:
    """What null is for a setting that may be null, as the end of a line; nothing for the others."""
    unset = next((given.unset for given in field.metadata if isinstance(given, Flag)), None)
    return f"; null means {unset}" if field.default is None and unset else ""
