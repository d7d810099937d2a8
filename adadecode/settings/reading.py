"""Settings from flags and files, each laid over those before it; a bad value becomes one line that says where it stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from adadecode.errors import UsageError
from adadecode.settings.fields import Settings, is_mapping
from adadecode.settings.files import FileSettings, read_mapping
from adadecode.settings.groups import DecodeSettings, PlacementSettings, ThreadSettings
from adadecode.settings.policy import PolicyError, with_policy
from adadecode.settings.problems import bad_values_line, shown_value, unknown_line

CELLS, GRID = "cells", "grid"  # of a file for a sweep alone
SettingsT = TypeVar("SettingsT", bound=Settings)


def build_settings(
    kind: type[SettingsT], config_file: Path | None, flags: dict[str, Any], *, beside: type[Settings] | None = None
) -> SettingsT:
    """`kind` from a file of settings overlaid with the flags that were given; a bad value becomes one line.

    What the file has that only a configuration of kind `beside` knows is left out: one file can serve both. So is of a
    run.json where and how patiently that run was done.
    """
    values = FileSettings({}, {}) if config_file is None else read_settings(config_file)
    if beside is not None:
        values = _shared(values, beside, kind)
    if of_sweep := next((name for name in (CELLS, GRID) if name in values), None):
        theirs = "are a sweep's" if of_sweep == CELLS else "is a sweep's"
        raise UsageError(f"{values.places[of_sweep]}: `{of_sweep}` {theirs}: run the file with `adadecode sweep`")
    return settings_of(kind, values, given_flags(flags))


def _shared(values: FileSettings, other: type[Settings], kind: type[Settings]) -> FileSettings:
    """What a configuration of `kind` takes of `values`, a file for one of `other`; raises UsageError for unknown names."""
    flat = values.flattened("decode")
    known, taken = _flat_names(other), _flat_names(kind)
    if unknown := [name for name in flat if name not in known | taken and name not in (CELLS, GRID)]:
        raise UsageError(unknown_line(unknown[0], flat.places[unknown[0]], known | taken))
    left_out = known - taken
    if values.of_run:
        left_out |= PlacementSettings.model_fields.keys() - ThreadSettings.model_fields.keys()
    return flat.without(left_out)


def _flat_names(kind: type[Settings]) -> set[str]:
    """The settings of `kind`, those of `decode` among them."""
    names = set(kind.model_fields)
    return names - {"decode"} | set(DecodeSettings.model_fields) if "decode" in names else names


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
    parts = [_flat(layer) if of_decode else layer for layer in layers]
    for idx, part in enumerate(parts):
        if of_decode and isinstance(part, FileSettings) and part.of_run:
            part = _of_run(part, has_other_policy=any("policy" in later for later in parts[idx + 1 :]))
        given |= part
        places |= {name: part.places.get(name) if isinstance(part, FileSettings) else None for name in part}
    names = _flat_names(kind)
    if unknown := [name for name in given if name not in names]:
        raise UsageError(unknown_line(unknown[0], places[unknown[0]], names))
    values = {name: value for name, value in given.items() if name not in of_decode}
    if of_decode:
        values |= {"decode": {name: value for name, value in given.items() if name in of_decode}}
    try:
        # a run's policy was looked up when it began, and need not be there any more
        of_run = any(isinstance(part, FileSettings) and part.of_run for part in parts)
        return kind.model_validate(with_policy(values, is_settled=of_run) if of_decode else values)
    except PolicyError as error:
        place = places.get("policy")
        raise UsageError(f"{error}" if place is None else f"{place}: {str(error).removeprefix('--')}") from None
    except ValidationError as error:
        raise UsageError(bad_values_line(kind, error, places)) from None


def settings_of_run(kind: type[SettingsT], config: Mapping[str, Any]) -> SettingsT:
    """`kind` from the `config` in a run.json of any version; a bad value becomes one line."""
    decode = config.get("decode")
    inner = {"decode": FileSettings(decode, {})} if is_mapping(decode) else {}
    return settings_of(kind, FileSettings({**config, **inner}, {}, of_run=True))


def _flat(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of `layer`, those in `decode` beside the others; raises UsageError where that is no mapping."""
    if isinstance(layer, FileSettings):
        return layer.flattened("decode")
    decode = layer.get("decode", {})
    if isinstance(decode, DecodeSettings):
        decode = decode.model_dump(exclude_unset=True)
    if not isinstance(decode, Mapping):
        raise UsageError(
            f"decode {shown_value(decode)}: it must be DecodeSettings or a mapping, such as {{'gamma': 0.7}}"
        )
    return {**decode, **{name: value for name, value in layer.items() if name != "decode"}}


def _of_run(settings: FileSettings, *, has_other_policy: bool) -> FileSettings:
    """The settings of a run.json, whose decode settings are all given, so that its policy need not be there any more.

    With another policy than that of the run they are that one's, except for the length of the outputs.
    """
    of_decode = DecodeSettings.model_fields.keys()
    if has_other_policy:
        return settings.without(of_decode - {"max_new_tokens"})
    if "policy" not in settings:
        return settings
    defaults = DecodeSettings().model_dump(mode="json")  # of what that version did not know
    return FileSettings({**defaults, **settings}, settings.places, of_run=True)
