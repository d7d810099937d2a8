"""Click options made from the fields of a configuration: names, types, texts and defaults are those of the settings.

No flag has a default of its own: what is not given comes from --config, then from the settings' defaults.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adadecode.settings import (
    DecodeSettings,
    DecodingSettings,
    Flag,
    Settings,
    flag_name,
    is_verbatim,
    members,
    read_policy,
)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of settings; flags win over it.",
)
COMPILE = click.option("--compile", "kernels", flag_value="compile", help="The same as --kernels compile.")


class Setting(NamedTuple):
    """One setting as a flag: `--flag`, its field, and what it is when it is not given, in words."""

    name: str
    flag: str
    field: FieldInfo
    default: str | None


def settings_options(kind: type[Settings], leave_out: Collection[str] = ()) -> Decorator:
    """An option for every setting of `kind`, those of `decode` flat beside the others, and --config."""
    options = []
    for setting in settings_in(kind):
        if setting.name not in leave_out:
            options += [option_of(setting), *([COMPILE] if setting.name == "kernels" else [])]
    # click shows first what is applied last
    return lambda function: functools.reduce(
        lambda decorated, option: option(decorated), reversed([*options, CONFIG]), function
    )


def settings_in(kind: type[Settings]) -> Iterator[Setting]:
    """The settings of `kind`, group after group from the most general on, those of `decode` in its place."""
    for name, field in kind.model_fields.items():
        if name == "decode":
            assert issubclass(kind, DecodingSettings), kind
            decode = type(kind.model_fields["decode"].default)
            for inner, inner_field in decode.model_fields.items():
                yield Setting(inner, flag_name(inner, inner_field), inner_field, decode_default(decode, inner))
        else:
            yield Setting(name, flag_name(name, field), field, default_text(field, field.default))


def default_text(field: FieldInfo, value: Any) -> str | None:
    """What a setting of `value` is, as a flag would say it; None for a switch that is off and what has no default."""
    if value is None:
        return next((given.unset for given in field.metadata if isinstance(given, Flag)), None)
    if value is PydanticUndefined or value is False:
        return None
    if value is True:
        return "yes"
    return ",".join(map(_shown, value)) if isinstance(value, tuple) else _shown(value)


def _shown(value: Any) -> str:
    return format(value, "g") if isinstance(value, float) else str(value)


def decode_default(decode: type[DecodeSettings], name: str) -> str | None:
    """The default of a decode setting: the demo's policy for the demo, the paper's for every other model."""
    field = decode.model_fields[name]
    paper, demo = (default_text(field, getattr(settings, name)) for settings in decode_defaults(decode))
    return paper if paper == demo else f"{demo} for the demo, else {paper}"


@functools.cache
def decode_defaults(decode: type[DecodeSettings]) -> tuple[DecodeSettings, DecodeSettings]:
    """The decode settings of a model of no policy, and those of the demo."""
    return decode.model_validate({}), decode.model_validate({"policy": "demo", **read_policy("demo")})


def option_of(setting: Setting) -> Decorator:
    """The click option of `setting`; what it takes follows from the field's type."""
    name, flag, field, default = setting
    text = (field.description or "") + (f"  [default: {default}]" if default else "")
    if field.is_required():
        text += "  [required]"
    if field.annotation is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}" if field.default else flag
        return click.option(both, name, is_flag=True, default=None, help=text)
    kinds = set(members(field.annotation))
    choices = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    plain = {kind for kind in kinds if get_origin(kind) is not Literal}
    takes: dict[str, Any] = {"metavar": "|".join(choices) or None}
    if plain in ({int}, {float}) and not choices:
        takes = {"type": plain.pop()}
    elif plain == {int}:
        takes = {"metavar": f"N|{'|'.join(choices)}", "callback": number_or(*choices)}
    elif plain == {tuple[int, ...]}:
        takes = {"metavar": "N,N,...", "callback": integers}
    elif plain == {float, tuple[float, ...]}:
        takes = {"metavar": "P|P,P,...", "callback": number_or_numbers}
    elif is_verbatim(field):
        takes = {"metavar": "TEXT", "multiple": True, "callback": texts}
    elif any(get_origin(kind) is tuple for kind in plain):
        takes = {"metavar": "NAME,...", "callback": names}
    else:
        assert plain <= {str}, f"{name}: no flag is made of {field.annotation}"
    return click.option(flag, name, help=text, **takes)


def split(kind: Callable[[str], Any], text: str, wanted: str) -> tuple[Any, ...]:
    """The values in `text`, with commas between; raises BadParameter, which says what is `wanted`."""
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} must be {wanted}") from None


def some_text(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """`text`; None when the flag is not given. Raises BadParameter when it is empty."""
    if text is not None and not text.strip():
        raise click.BadParameter(f"{text!r} is empty: {'' if parameter.required else 'leave it out, or '}give one")
    return text


def some_texts(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Several of what `some_text` gives."""
    return tuple(text for text in texts if some_text(context, parameter, text) is not None)


def some_path(context: click.Context, parameter: click.Parameter, text: str | None) -> Path | None:
    """What `some_text` gives as a path, which would take empty text for this folder."""
    given = some_text(context, parameter, text)
    return None if given is None else Path(given)


def integers(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """The whole numbers in `text`, with commas between; None when the flag is not given."""
    return None if text is None else split(int, text, "whole numbers with commas, such as 4,8,12")


def names(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """The names in `text`, with commas between; None when the flag is not given."""
    return None if text is None else split(str, text, "names with commas")


def texts(_: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The texts of a flag that is given once for each; None when it is not given."""
    return given or None


def number_or_numbers(
    _: click.Context, parameter: click.Parameter, text: str | None
) -> float | tuple[float, ...] | None:
    """The number `text` is, or the several it has with commas between; None when the flag is not given."""
    if text is None:
        return None
    found = split(float, text, "a number or one per exit with commas, such as 0.5,0.6")
    return found if len(found) != 1 else found[0]


def number_or(*words: str) -> Callable[[click.Context, click.Parameter, str | None], int | str | None]:
    """A callback that takes a whole number or one of `words`."""

    def parse(_: click.Context, parameter: click.Parameter, text: str | None) -> int | str | None:
        if text is None or text in words:
            return text
        try:
            return int(text)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} must be a whole number from 1 or {' or '.join(f'`{word}`' for word in words)}"
            ) from None

    return parse
