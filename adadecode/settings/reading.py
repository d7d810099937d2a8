"""Settings from flags and YAML files, each laid over those before it; a bad value becomes one line."""

from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from adadecode.errors import UsageError
from adadecode.settings.groups import DecodeSettings, Settings, is_mapping
from adadecode.settings.policy import with_policy

SettingsT = TypeVar("SettingsT", bound=Settings)


def build_settings(
    kind: type[SettingsT], config_file: Path | None, flags: dict[str, Any], *, beside: type[Settings] | None = None
) -> SettingsT:
    """`kind` from a YAML file overlaid with the flags that were given; a bad value becomes one line.

    What the file has that only a configuration of kind `beside` knows is left out: one file can serve both.
    """
    values = {} if config_file is None else read_settings(config_file)
    if beside is not None:
        values = {name: value for name, value in values.items() if name not in others_alone(beside, kind)}
    if "cells" in values:
        raise UsageError(f"{config_file}: it has `cells`, which are a sweep's: run it with `adadecode sweep`")
    return settings_of(kind, values, given_flags(flags))


def others_alone(other: type[Settings], kind: type[Settings]) -> set[str]:
    """The settings that `other` has and `kind` has not."""
    return set(other.model_fields) - set(kind.model_fields)


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """`flags` less those that were not given."""
    return {name: value for name, value in flags.items() if value is not None}


def read_settings(config_file: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings."""
    try:
        loaded = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{config_file}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not is_mapping(loaded) or not is_mapping(loaded.get("decode", {})):
        raise UsageError(f"{config_file}: expected a mapping of settings, such as `task: gsm8k`, and one in `decode`")
    return loaded


def settings_of(kind: type[SettingsT], *layers: dict[str, Any]) -> SettingsT:
    """`kind` from `layers` of settings, each laid over those before it.

    The settings of `decode` may also stand flat beside the others, as the flags do. A bad value becomes one line.
    """
    values: dict[str, Any] = {}
    decode: dict[str, Any] = {}
    flat: set[str] = set(DecodeSettings.model_fields) if "decode" in kind.model_fields else set()
    for layer in layers:
        layer = dict(layer)
        decode |= layer.pop("decode", {}) if flat else {}
        decode |= {name: layer.pop(name) for name in flat & layer.keys()}
        values |= layer
    if flat:
        values = with_policy({**values, "decode": decode})
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_one_line(problem) for problem in error.errors())) from None


def _one_line(problem: Any) -> str:
    names = [part for part in problem["loc"] if isinstance(part, str)]  # the others count items of a list
    flag = "--" + names[-1].replace("_", "-") if names else "settings"
    value = problem["input"]
    shown = ",".join(map(str, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else repr(value)
    return f"{flag}{'' if isinstance(value, dict) else f' {shown}'}: {problem['msg'].removeprefix('Value error, ')}"
