"""Settings that are right but for one or two, from files and flags: what cannot be used is one line, never a traceback."""

import json
import math
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import event, given
from hypothesis import strategies as st

from adadecode.cli.main import main
from adadecode.errors import UsageError
from adadecode.settings import (
    BenchConfig,
    DecodeSettings,
    EvalConfig,
    GenerateConfig,
    RivalSettings,
    SamplingSettings,
    TrainConfig,
    TuneConfig,
    build_settings,
    flag_name,
    members,
)
from tests.fuzz.cases import fuzzed

KINDS = (EvalConfig, TrainConfig, TuneConfig, BenchConfig, GenerateConfig)
EXITS = st.lists(st.integers(1, 11), min_size=1, max_size=3, unique=True).map(sorted)
# Right values of settings that are neither numbers in a range nor one of a few words.
RIGHT = {
    "model": st.just("demo"),
    "task": st.sampled_from(["demo", "demo-math", "demo-code"]),
    "policy": st.sampled_from(["demo", "paper"]),
    "exits": EXITS,
    "gamma": st.floats(0, 1),
    "methods": st.sampled_from([["vanilla"], ["adadecode", "vanilla"], "vanilla,vanilla-w1"]),
    "max_errors": st.sampled_from(["5%", 3, "0", "100%"]),
    "workers": st.integers(1, 4),
    "system_prompt": st.just("Be brief."),
    "stop_strings": st.sampled_from([["\n\n"], "Question:", ["#", ", "]]),
}
# Settings that are right beside few others only: they are there as odd ones.
WITH_OTHERS = {"revision", "heads", "data_file", "prompt_field", "address", "outputs", "local", "shape", "kind"}
WITH_OTHERS |= {
    "foreign_heads",
    "label_selector",
    "gpus_per_worker",
    "rank",
    "kl_top_k",
    "kernels",
    "num_shots",
    "shots_file",
    *RivalSettings.model_fields,
    *SamplingSettings.model_fields,
}

NUMBERS = [*range(-2, 3), 2**31, 2**63, 2**64, 10**12, 10**22, 10**30, -(10**30)]
FLOATS = [0.5, -0.0, 5e-324, 1.0000001, 1e300, math.nan, math.inf, -math.inf]
WORDS = [
    "no",
    "yes",
    "off",
    "null",
    "~",
    "none",
    "true",
    "auto",
    "",
    " ",
    "4,8",
    "0.5,x",
    ".nan",
    "1:30",
    "0x1F",
    "1_0",
]
WORDS += ["010", "1e3", "5%", "2024-10-22", "<<", "!!int 3", "*a", "[", "{", "\ud800", "\0", "\x1b[2J\n", "9" * 5000]
NESTED = [[], [None], [[1]], ["4", 8], [4, 8], [8, 4], [0.5, True], {}, {"a": 1}, {"gamma": {}}, [{}]]
ODD_VALUES = st.sampled_from([None, True, False, *NUMBERS, *FLOATS, *WORDS, *NESTED]) | st.text(max_size=3)
ODD_NUMBERS = st.sampled_from([*NUMBERS, *FLOATS])
ODD_NAMES = ["decode", "cells", "config", "fingerprint", "tuned", "max-drafts", "Gamma", "out", "", "\ud800"]


def right_value(name: str, field: Any) -> st.SearchStrategy[Any]:
    """Values that the setting takes, whatever the others are."""
    if name in RIGHT:
        return RIGHT[name]
    kinds = list(members(field.annotation))
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words:
        return st.sampled_from(words)
    least = max((getattr(given, "ge", getattr(given, "gt", 0)) for given in field.metadata), default=0)
    return {bool: st.booleans(), int: st.integers(least, least + 6), float: st.floats(0.1, 0.9)}[kinds[0]]


def right_settings(kind: Any) -> dict[str, st.SearchStrategy[Any]]:
    """Each setting of `kind` that may be given beside any other, those of `decode` too, with its right values."""
    fields = dict(kind.model_fields)
    if "decode" in fields:
        fields = {**DecodeSettings.model_fields, **fields}
        del fields["decode"]
    return {name: right_value(name, field) for name, field in fields.items() if name not in WITH_OTHERS}


STRATEGIES = {kind: right_settings(kind) for kind in KINDS}


@st.composite
def almost_right(draw: Any, kind: Any) -> dict[str, Any]:
    """Right settings of `kind` with none, one or two odd ones among them."""
    pool = STRATEGIES[kind]
    names_of_kind = set(kind.model_fields) | (
        DecodeSettings.model_fields.keys() if "decode" in kind.model_fields else set()
    )
    names = draw(st.lists(st.sampled_from(sorted(pool)), max_size=5, unique=True))
    values = {name: draw(pool[name]) for name in names}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        name = draw(st.sampled_from([*pool, *sorted(WITH_OTHERS & names_of_kind)] * 3 + ODD_NAMES))
        values[name] = draw(ODD_NUMBERS if draw(st.booleans()) else ODD_VALUES)
    if "decode" in kind.model_fields and "decode" not in values and draw(st.booleans()):
        decode = {name: values.pop(name) for name in list(values) if name in DecodeSettings.model_fields}
        values["decode"] = decode
    return values


def written(values: dict[str, Any], suffix: str) -> bytes:
    """`values` as a file of settings; what YAML cannot write stays as Python has it, which is as good a mistake."""
    if suffix == ".json":
        return json.dumps(values).encode()
    try:
        return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return repr(values).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def numbers_in(value: Any) -> list[float]:
    """All numbers in `value`, at any depth."""
    if isinstance(value, dict | list | tuple):
        return [
            number for part in (value.values() if isinstance(value, dict) else value) for number in numbers_in(part)
        ]
    return [value] if isinstance(value, int | float) else []


def check_file(folder: Any, kind: Any, content: bytes, suffix: str) -> None:
    file = folder / f"settings{suffix}"
    file.write_bytes(content)
    config, problem = None, ""
    try:
        config = build_settings(kind, file, {"task": "demo"} if kind is TrainConfig else {})
    except UsageError as error:
        problem = str(error)
    event("settings" if config is not None else "one line")
    assert len(problem.splitlines()) == (1 if config is None else 0)
    if config is not None:
        assert kind.model_validate_json(config.model_dump_json()) == config
        numbers = numbers_in(config.model_dump())
        assert all(map(math.isfinite, numbers))
        assert all(abs(number) < 2**63 for number in numbers if isinstance(number, int)), "more than tensors count"


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
@given(data=st.data(), suffix=st.sampled_from([".yaml", ".json"]))
def test_a_file_of_settings_gives_settings_or_one_line(folder, kind, data, suffix):
    check_file(folder, kind, written(data.draw(almost_right(kind)), suffix), suffix)


@fuzzed
@given(
    content=st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40),
    suffix=st.sampled_from([".yaml", ".json"]),
)
def test_a_file_of_anything_gives_settings_or_one_line(folder, content, suffix):
    check_file(folder, EvalConfig, content, suffix)


FIELDS = {**DecodeSettings.model_fields, **EvalConfig.model_fields}
PLAN_OPTIONS = {option.name: option for option in main.commands["plan"].params}


def as_flags(values: dict[str, Any]) -> list[str]:
    """`values` as the flags of `plan`: lists with commas, and switches by being there."""
    flags = []
    for name, value in values.items():
        if name in ("decode", *ODD_NAMES):
            continue
        option: Any = PLAN_OPTIONS[name]
        flag = flag_name(name, FIELDS[name])
        if isinstance(value, bool) and (option.is_flag or value):  # of what is no switch: a flag without its value
            switches = [flag] if value else option.secondary_opts
            flags += switches
        else:
            flags.append(f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return flags


@fuzzed
@given(flags=almost_right(EvalConfig), in_file=st.none() | almost_right(EvalConfig), data=st.data())
def test_flags_and_a_file_give_a_plan_or_one_line(folder, flags, in_file, data):
    given_flags = as_flags({**flags, **(flags.get("decode") if isinstance(flags.get("decode"), dict) else {})})
    if in_file is not None:
        suffix = data.draw(st.sampled_from([".yaml", ".json"]))
        (folder / f"plan{suffix}").write_bytes(written(in_file, suffix))
        given_flags += ["--config", str(folder / f"plan{suffix}")]
    if data.draw(st.integers(0, 9)) == 0:
        given_flags += data.draw(
            st.sampled_from([["--gpus=1,2"], ["--gpus"], ["--rates="], ["--gamma"], ["--nothing"]])
        )
    result = CliRunner().invoke(main, ["plan", *given_flags])
    event(f"exit code {result.exit_code}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 2)
    if result.exit_code == 2:
        assert result.stderr.startswith(("adadecode: ", "Usage: ", "Error: "))
        assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("Usage: ")
