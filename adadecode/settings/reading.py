"""Settings from flags and files, each laid over those before it; a bad value becomes one line that says where it stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from adadecode.errors import UsageError
from adadecode.settings.files import FileSettings, read_mapping
from adadecode.settings.groups import DecodeSettings, Settings
from adadecode.settings.policy import PolicyError, with_policy
from adadecode.settings.problems import bad_values_line, unknown_line

SettingsT = TypeVar("SettingsT", bound=Settings)


def build_settings(
    kind: type[SettingsT], config_file: Path | None, flags: dict[str, Any], *, beside: type[Settings] | None = None
) -> SettingsT:
    """`kind` from a file of settings overlaid with the flags that were given; a bad value becomes one line.

    What the file has that only a configuration of kind `beside` knows is left out: one file can serve both.
    """
    values = FileSettings({}, {}) if config_file is None else read_settings(config_file)
    if beside is not None:
        values = values.without(others_alone(beside, kind))
    if "cells" in values:
        raise UsageError(f"{values.places['cells']}: `cells` are a sweep's: run the file with `adadecode sweep`")
    return settings_of(kind, values, given_flags(flags))


def others_alone(other: type[Settings], kind: type[Settings]) -> set[str]:
    """The settings that `other` has and `kind` has not."""
    names = set(other.model_fields)
    if "decode" in names - set(kind.model_fields):
        names |= set(DecodeSettings.model_fields)  # they may stand flat
    return names - set(kind.model_fields)


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """`flags` less those that were not given."""
    return {name: value for name, value in flags.items() if value is not None}


def read_settings(config_file: Path) -> FileSettings:
    """The mapping in a YAML file of settings, or that of a run's run.json; raises UsageError."""
    return checked_decode(read_mapping(config_file))


def checked_decode(settings: FileSettings) -> FileSettings:
    """`settings`; raises UsageError unless their `decode` is a mapping and has none of what stands beside it."""
    decode = settings.get("decode", FileSettings({}, {}))
    if not isinstance(decode, FileSettings):
        raise UsageError(f"{settings.places['decode']}: `decode` must be a mapping of settings, such as `gamma: 0.7`")
    for name in (name for name in settings if name in decode):
        raise UsageError(f"{settings.places[name]}: `{name}` stands in `decode` too ({decode.places[name]}); keep one")
    return settings


def settings_of(kind: type[SettingsT], *layers: Mapping[str, Any]) -> SettingsT:
    """`kind` from `layers` of settings, each laid over those before it.

    The settings of `decode` may also stand flat beside the others, as the flags do. A bad value becomes one line.
    """
    of_decode: set[str] = set(DecodeSettings.model_fields) if "decode" in kind.model_fields else set()
    given: dict[str, Any] = {}
    places: dict[str, str | None] = {}  # in which file and line, where it was in one
    for layer in layers:
        for part in _flat(layer) if of_decode else [layer]:
            given |= part
            places |= {name: part.places[name] if isinstance(part, FileSettings) else None for name in part}
    names = {name for name in kind.model_fields if name != "decode" or not of_decode} | of_decode
    if unknown := [name for name in given if name not in names]:
        raise UsageError(unknown_line(unknown[0], places[unknown[0]], names))
    values = {name: value for name, value in given.items() if name not in of_decode}
    if of_decode:
        values |= {"decode": {name: value for name, value in given.items() if name in of_decode}}
    try:
        return kind.model_validate(with_policy(values) if of_decode else values)
    except PolicyError as error:
        place = places.get("policy")
        raise UsageError(f"{error}" if place is None else f"{place}: {str(error).removeprefix('--')}") from None
    except ValidationError as error:
        raise UsageError(bad_values_line(kind, error, places)) from None


def _flat(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings in `decode` of `layer`, and those beside it."""
    decode = layer.get("decode", {})
    if isinstance(decode, DecodeSettings):
        decode = decode.model_dump(exclude_unset=True)
    if isinstance(layer, FileSettings):
        return [decode, layer.without({"decode"})]
    return [decode, {name: value for name, value in layer.items() if name != "decode"}]
