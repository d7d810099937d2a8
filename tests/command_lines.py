"""The program's commands as documents and cluster files write them, parsed by the real command line; nothing is run."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import click

from adadecode.cli.main import main
from adadecode.cli.submit import with_absolute_out
from adadecode.settings import CertifyConfig, EvalConfig, TrainConfig, TuneConfig, build_settings

FENCED_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def shell_blocks(markdown: str) -> list[str]:
    """The contents of the fenced blocks marked `bash`."""
    return [block for language, block in FENCED_BLOCK.findall(markdown) if language == "bash"]


def comments(yaml_text: str) -> str:
    """The comment lines of a YAML file, without their marks."""
    lines = (line.strip() for line in yaml_text.splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def program_commands(shell_text: str) -> Iterator[list[str]]:
    """Every `adadecode ...` and `python -m adadecode ...` in `shell_text`, as `[subcommand, argument, ...]`.

    Variables set before a command and another program's words before it (`ray job submit ... --`) are skipped.
    """
    for line in shell_text.replace("\\\n", " ").splitlines():
        assert "-m ray_jobs" not in line, f"no module of ray_jobs is a command: {line}"
        if re.search(r"\badadecode [a-z]", line):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["adadecode"]:
                yield words[1:]
            elif (idx := index_of(["-m", "adadecode"], words)) is not None:
                yield words[idx + 2 :]


def index_of(part: Sequence[str], words: Sequence[str]) -> int | None:
    """Where `part` begins in `words`; None when it is not there."""
    found = (idx for idx in range(len(words)) if list(words[idx : idx + len(part)]) == list(part))
    return next(found, None)


def parse(command: Sequence[str]) -> dict[str, Any]:
    """The parameters click makes of `[subcommand, argument, ...]`; raises click's or our error when it refuses them.

    Settings are built too, so that a bad value is refused. A submitted command is parsed as the cluster would parse it.
    """
    name, *arguments = command
    if name not in main.commands:
        raise click.UsageError(f"there is no command {name!r}")
    called = main.commands[name]
    if isinstance(called, click.Group):
        below, *arguments = arguments
        if below not in called.commands:
            raise click.UsageError(f"there is no command {name} {below!r}")
        called = called.commands[below]
    parameters = called.make_context(name, list(arguments)).params
    if name == "submit":
        return parse([parameters["command"], *with_absolute_out(parameters["arguments"])])
    kinds: dict[str, Any] = {"eval": EvalConfig, "plan": EvalConfig, "train-heads": TrainConfig, "tune": TuneConfig}
    kinds["certify"] = CertifyConfig
    kind = kinds.get(name)
    if kind is not None:
        flags = {
            flag: value for flag, value in parameters.items() if flag not in ("config_file", "out", "rates", "gpus")
        }
        if (flags.get("policy") or "").endswith("/policy.yaml"):
            flags["policy"] = "paper"  # a file that a `tune` before this command writes
        build_settings(kind, parameters["config_file"], flags)
    return parameters


def all_flags() -> set[str]:
    """Every flag of every command."""
    found = {"--help", "--version"}
    for command in main.commands.values():
        below = command.commands.values() if isinstance(command, click.Group) else ()
        for parameter in (parameter for one in (command, *below) for parameter in one.params):
            if isinstance(parameter, click.Option):
                found |= {*parameter.opts, *parameter.secondary_opts}
    return found
