"""Flags are made from settings: names, what they take, and that every default a help text states is the true one."""

import re
from typing import Annotated, Any

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from adadecode.bench.subject import PROMPTS_PER_TASK, SYNTHETIC_PROMPTS
from adadecode.cli.evaluate import DEFAULT_GPUS
from adadecode.cli.main import main
from adadecode.cli.options import settings_in, settings_options
from adadecode.model.shortlist import LONGEST_SHORTLIST, default_shortlist_len
from adadecode.settings import (
    BenchConfig,
    CertifyConfig,
    EvalConfig,
    Flag,
    GenerateConfig,
    RivalSettings,
    Settings,
    TrainConfig,
    TuneConfig,
    build_settings,
)
from adadecode.training.kinds import DEFAULT_RANK

KINDS: dict[str, type[Settings]] = {
    "eval": EvalConfig,
    "plan": EvalConfig,
    "sweep": EvalConfig,
    "generate": GenerateConfig,
    "bench": BenchConfig,
    "train-heads": TrainConfig,
    "tune": TuneConfig,
    "certify": CertifyConfig,
}
FLAGS = [
    pytest.param(name, option, id=f"{name} {option.opts[0]}")
    for name in KINDS
    for option in main.commands[name].params
    if isinstance(option, click.Option)
    and option.name in {setting.name for setting in settings_in(KINDS[name])}
    and option.opts != ["--compile"]  # an alias
    and (name, option.name) != ("sweep", "max_drafts")  # a grid of values: it has no default of its own
]


def resolved(kind: type[Settings], name: str, **flags: Any) -> Any:
    """Setting `name` of `kind` when nothing but `flags` is given, as a flag would say it; None when it has no value."""
    if kind is TrainConfig:
        flags["task"] = "gsm8k"
    if kind is CertifyConfig:
        servers = {"baseline": "http://a", "candidate": "http://b"}
        flags = {key: value for key, value in flags.items() if key != "model"} | servers
        if name in servers:
            return None
    config: Any = build_settings(kind, None, flags)
    value = getattr(config, name) if name in kind.model_fields else getattr(config.decode, name)
    if isinstance(value, bool):
        return "yes" if value else None
    parts = value if isinstance(value, tuple) else (value,)
    return None if value is None else ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)


@pytest.mark.parametrize(("command", "option"), FLAGS)
def test_the_default_that_a_help_text_states_is_what_the_settings_resolve_to(command, option):
    kind, stated = KINDS[command], re.search(r"\[default: (.*)\]$", option.help or "")
    demo, other = resolved(kind, option.name), resolved(kind, option.name, model="another/model")
    if option.name == "model":
        other = demo
    if stated is None:
        assert demo is None or option.help.endswith("[required]")
        return
    for_demo, _, for_others = stated[1].partition(" for the demo, else ")
    assert for_demo == demo or demo is None
    assert (for_others or for_demo) == other or other is None
    if demo is None:
        assert for_demo not in ("", "None")


@pytest.mark.parametrize("command", KINDS)
def test_every_setting_is_a_flag_with_a_text(command):
    shown = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
    in_other_words = {"sweep": {"gamma", "exits", "max_drafts"}}.get(command, set())  # as a grid
    unread = set(RivalSettings.model_fields) if command == "generate" else set()  # it decodes by none of their methods
    for setting in settings_in(KINDS[command]):
        if setting.name in unread:
            assert setting.flag not in shown, setting
        elif setting.name not in in_other_words:
            assert re.search(rf"{setting.flag}\b", shown), setting
        assert setting.field.description, setting


def help_of(command: str, name: str) -> str:
    """The help text of the flag of `command` that gives `name`."""
    (option,) = (option for option in main.commands[command].params if option.name == name)
    assert isinstance(option, click.Option)
    return option.help or ""


def test_a_default_that_another_room_decides_is_stated_as_that_room_has_it():
    """Settings import no other room, so these defaults are words in a Flag; the values are where they are used."""
    assert help_of("train-heads", "rank").endswith(f"[default: {DEFAULT_RANK}]")
    assert help_of("train-heads", "shortlist_len").endswith(f"[default: V / 4, at most {LONGEST_SHORTLIST}]")
    assert [default_shortlist_len(vocab_size) for vocab_size in (400, 8 * LONGEST_SHORTLIST)] == [
        400 // 4,
        LONGEST_SHORTLIST,
    ]
    stated = f"[default: {PROMPTS_PER_TASK} of each task, or {SYNTHETIC_PROMPTS} synthetic prompts]"
    assert help_of("bench", "limit").endswith(stated)


def test_the_defaults_of_flags_that_are_no_settings_are_the_stated_ones():
    gpus = ",".join(map(str, DEFAULT_GPUS))
    assert help_of("plan", "gpus").endswith(f"[default: {gpus}]")
    (out,) = (option for option in main.commands["sweep"].params if option.name == "out")
    shown = " ".join(CliRunner().invoke(main, ["sweep", "--help"]).stdout.split())
    assert f"--out TEXT {help_of('sweep', 'out')} [default: {out.default}]" in shown


class ToySettings(Settings):
    size: int = Field(default=3, ge=1, description="How large.")
    layers: Annotated[tuple[int, ...] | None, Flag("at", unset="all")] = Field(default=None, description="Where.")


def test_a_new_setting_is_a_field_and_nothing_else():
    @click.command()
    @settings_options(ToySettings)
    def toy(config_file, **flags):
        click.echo(build_settings(ToySettings, config_file, flags).model_dump_json())

    run = CliRunner().invoke
    assert run(toy, ["--size", "5", "--at", "4,8"]).stdout == '{"size":5,"layers":[4,8]}\n'
    assert run(toy, []).stdout == '{"size":3,"layers":null}\n'
    text = " ".join(run(toy, ["--help"]).stdout.split())
    assert "--size INTEGER How large. [default: 3]" in text
    assert "--at N,N,... Where. [default: all]" in text
    assert "'a' must be whole numbers with commas" in run(toy, ["--at", "a"]).stderr
