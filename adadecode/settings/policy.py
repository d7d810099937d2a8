"""Policies: decode settings under a name, which those that are given are laid over."""

from pathlib import Path
from typing import Any

import yaml

from adadecode.demo import POLICY_FILE
from adadecode.errors import UsageError
from adadecode.settings.groups import DecodeSettings, is_mapping


def with_policy(values: dict[str, Any]) -> dict[str, Any]:
    """`values` of a configuration, those of its policy laid under `decode`.

    Unless `decode` names one it is `demo` for the demo's own weights, else `paper`. Of DecodeSettings what was set in them
    is given. Raises UsageError for a policy that cannot be read.
    """
    decode = values.get("decode", {})
    if isinstance(decode, DecodeSettings):
        decode = decode.model_dump(exclude_unset=True)
    if not is_mapping(decode):
        return values
    is_demo = values.get("model", "demo") == "demo" and values.get("shape") is None
    name = decode.get("policy", "demo" if is_demo else "paper")
    return {**values, "decode": {"policy": name, **read_policy(name), **decode}}


def read_policy(name: str) -> dict[str, Any]:
    """The decode settings of policy `name`: nothing for `paper`, whose settings are the defaults, else a YAML file's."""
    if name == "paper":
        return {}
    file = POLICY_FILE if name == "demo" else Path(name)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"--policy {name!r}: give paper, demo or a YAML file of decode settings ({' '.join(str(error).split())})"
        ) from error
    if not is_mapping(settings):
        raise UsageError(f"--policy {name!r}: expected a mapping of decode settings, such as `gamma: 0.7`")
    settings.pop("tuned", None)  # what `tune` says of it; decides nothing
    unknown = set(settings) - set(DecodeSettings.model_fields)
    if unknown:
        raise UsageError(f"--policy {name!r}: {', '.join(sorted(map(str, unknown)))} is not among the decode settings")
    return settings
