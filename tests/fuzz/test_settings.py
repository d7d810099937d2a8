"""Settings of any shape, from files and flags: what cannot be used is one line, never a traceback."""

import math

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adadecode.cli.main import main
from adadecode.errors import UsageError
from adadecode.settings import (
    BenchConfig,
    DecodeSettings,
    EvalConfig,
    GenerateConfig,
    TrainConfig,
    TuneConfig,
    build_settings,
)
from tests.fuzz.cases import fuzzed

KINDS = (EvalConfig, TrainConfig, TuneConfig, BenchConfig, GenerateConfig)
NAMES = sorted({name for kind in KINDS for name in kind.model_fields} | set(DecodeSettings.model_fields))

WORDS = [
    "no",
    "yes",
    "on",
    "off",
    "null",
    "~",
    "none",
    "true",
    "auto",
    "demo",
    "paper",
    "vanilla",
    "4,8",
    "0.5,x",
    ".nan",
]
WORDS += [
    "1:30",
    "0x1F",
    "010",
    "1e3",
    "1_000",
    "-1",
    "5%",
    "2024-10-22",
    "<<",
    "!!int 3",
    "&a x",
    "*a",
    "[",
    "{",
    "\ud800",
]
NUMBERS = st.integers(-(10**30), 10**30) | st.integers(-3, 99) | st.floats() | st.floats(0, 1)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS) | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*NAMES, "decode", "cells", "config", "fingerprint", "tuned", "max-drafts", "Gamma"]) | st.text(
    max_size=8
)


def as_yaml(values):
    """`values` as YAML; a value that it cannot write stays as Python has it, which is as good a mistake."""
    try:
        return yaml.safe_dump(values, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return repr(values)


TEXTS = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=5).map(as_yaml),
    st.dictionaries(KEYS, SCALARS, max_size=4).map(
        lambda flat: "".join(f"{key}: {value}\n" for key, value in flat.items())
    ),
    st.dictionaries(st.just("decode"), st.dictionaries(KEYS, VALUES, max_size=4)).map(as_yaml),
    st.text(max_size=80),
)


PLAN_FLAGS = sorted({option.opts[0] for option in main.commands["plan"].params} - {"--config"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzzed
@given(st.sampled_from(KINDS), TEXTS, st.sampled_from([".yaml", ".json"]))
def test_a_file_of_settings_gives_settings_or_one_line(folder, kind, text, suffix):
    file = folder / f"settings{suffix}"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    config, problem = None, ""
    try:
        config = build_settings(kind, file, {"task": "demo"} if kind is TrainConfig else {})
    except UsageError as error:
        problem = str(error)
    assert len(problem.splitlines()) == (1 if config is None else 0)
    if config is not None:
        assert kind.model_validate_json(config.model_dump_json()) == config
        assert all(math.isfinite(value) for value in config.model_dump().values() if isinstance(value, float))


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(PLAN_FLAGS),
        SCALARS,
        max_size=3,
    ),
    st.none() | TEXTS,
)
def test_flags_and_a_file_give_a_plan_or_one_line(folder, flags, text):
    given_flags = [f"{flag}={value}" for flag, value in flags.items()]
    if text is not None:
        (folder / "plan.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        given_flags += ["--config", str(folder / "plan.yaml")]
    result = CliRunner().invoke(main, ["plan", "--limit", "3", *given_flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 2)
    if result.exit_code == 2:
        assert result.stderr.startswith(("adadecode: ", "Usage: ", "Error: "))
        assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("Usage: ")
