"""Policies: decode settings under a name, which those that are given are laid over."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adadecode.demo import POLICY_FILE
from adadecode.errors import UsageError
from adadecode.published import POLICY as PUBLISHED_POLICY
from adadecode.published import names, published
from adadecode.settings.fields import is_mapping
from adadecode.settings.files import read_mapping
from adadecode.settings.groups import DecodeSettings
from adadecode.settings.problems import bad_values_line, shown_value, unknown_line
from adadecode.settings.rivals import RIVALS_BEFORE
from adadecode.settings.sampling import DRAWN_BEFORE, sampling_text

POLICIES = (
    "give paper, demo or a YAML file of decode settings, such as `gamma: 0.7`, or the name of one that is published: "
    f"{', '.join(names())}"
)

# Decode settings that version 0.1.0 did not have, as it decoded.
DECODED_BEFORE: dict[str, object] = {"stop": "token", "ngram_store": True, **RIVALS_BEFORE}


class PolicyError(UsageError):
    """What is named as a policy is none."""


def with_policy(values: dict[str, Any], *, is_settled: bool = True) -> dict[str, Any]:
    """`values` of a configuration, those of its policy laid under `decode`.

    Unless `decode` names one it is `demo` for the demo's own weights and heads, over their shortlist, else `paper`.
    Where all of `decode` is given and `is_settled`, as in the run.json of a run, its policy is a name not looked up: all of
    version 0.1.0, whose runs lack what came later and decoded as DECODED_BEFORE says.
    Of DecodeSettings what was set in them is given.
    Raises PolicyError for what is no policy.
    """
    decode = values.get("decode", {})
    if isinstance(decode, DecodeSettings):
        decode = decode.model_dump(exclude_unset=True)
    settled = DecodeSettings.model_fields.keys() - DECODED_BEFORE.keys()
    if not is_mapping(decode) or (is_settled and decode.keys() >= settled):
        return values
    is_demo = values.get("model", "demo") == "demo" and values.get("shape") is None and values.get("heads") is None
    is_demo = is_demo and decode.get("head") != "full"  # the heads at the exits of its policy have no such form
    name = decode.get("policy", "demo" if is_demo else "paper")
    return {**values, "decode": {"policy": name, **read_policy(name), **decode}}


def read_policy(name: object) -> dict[str, Any]:
    """The decode settings of policy `name`: nothing for `paper`, whose settings are the defaults, else a YAML file's.

    Raises PolicyError for what is no policy, or has a bad value.
    """
    if name == "paper":
        return {}
    if not isinstance(name, str) or not name.strip():
        raise PolicyError(f"--policy {shown_value(name)}: {POLICIES}; leave it out for the default")
    try:
        settings = read_mapping(_file_of(name))
    except UsageError as error:
        raise PolicyError(f"--policy {name!r}: {POLICIES} ({error})") from None
    settings = settings.without({"tuned"})  # what `tune` says of it; decides nothing
    names = DecodeSettings.model_fields.keys() - {"policy"}
    if unknown := [name for name in settings if name not in names]:
        raise PolicyError(f"--policy {name!r}: {unknown_line(unknown[0], settings.places[unknown[0]], names)}")
    try:
        return DecodeSettings.model_validate(settings).model_dump(exclude_unset=True)
    except ValidationError as error:
        line = bad_values_line(DecodeSettings, error, settings.places)
        raise PolicyError(f"--policy {name!r}: {line}") from None


def tuned_for(name: str) -> dict[str, Any] | None:
    """The kind of machine that policy `name` was tuned for, as its file has it; None where it does not tell."""
    machine = (_tuned(name) or {}).get("machine")
    return dict(machine) if is_mapping(machine) else None


def drawn_otherwise(name: str, config: Mapping[str, Any]) -> list[str]:
    """One line when policy `name` was tuned on outputs drawn in another way than `config` draws; else none."""
    if (tuned := _tuned(name)) is None:
        return []
    wanted = tuned.get("sampling") or "greedy"
    here = sampling_text({**config, "sampling_seed": DRAWN_BEFORE["sampling_seed"]}) or "greedy"
    if wanted == here:
        return []
    return [
        f"the policy was tuned on other outputs ({wanted}) than these ({here}): `adadecode tune` finds the fastest here"
    ]


def _tuned(name: str) -> dict[str, Any] | None:
    """What `tune` says in the file of policy `name`; None where it says nothing."""
    if name == "paper":
        return None
    with contextlib.suppress(UsageError):
        tuned = read_mapping(_file_of(name)).get("tuned")
        return dict(tuned) if is_mapping(tuned) else None
    return None


def _file_of(name: str) -> Path:
    if name == "demo":
        return POLICY_FILE
    own, shipped = Path(name), published(name)
    return own if shipped is None or own.is_file() else shipped / PUBLISHED_POLICY
