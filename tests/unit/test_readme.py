import re
from pathlib import Path
from typing import Any

import click
import pytest

from tests.command_lines import all_flags, parse, program_commands, shell_blocks

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "cluster" / "README.md",
    ROOT / "results" / "README.md",
    ROOT / "results" / "reference" / "README.md",
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST_README = 150


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


COMMANDS: list[Any] = [
    pytest.param(command, id=f"{name(path)}: {' '.join(command)[:60]}")
    for path in DOCUMENTS
    for block in shell_blocks(path.read_text(encoding="utf-8"))
    for command in program_commands(block)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_is_one_the_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(command)


def test_readme_and_docs_show_every_command():
    from adadecode.cli.main import main

    shown = {command.values[0][0] for command in COMMANDS}
    assert shown >= set(main.commands)


def test_every_command_a_job_can_run_is_shown_as_one():
    from adadecode.cli.main import main

    (command,) = (parameter for parameter in main.commands["submit"].params if parameter.name == "command")
    submitted = [pytest_param.values[0] for pytest_param in COMMANDS if pytest_param.values[0][0] == "submit"]
    shown = {word for words in submitted for word in words}
    assert shown >= set(command.type.choices)


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= LONGEST_README


def test_a_command_inside_another_program_is_seen():
    (command,) = program_commands("ray job submit --address http://head:8265 -- python -m adadecode eval --task demo")
    assert command == ["eval", "--task", "demo"]


def test_a_renamed_flag_would_be_noticed():
    (command,) = program_commands("RAY_AUTH_MODE=token adadecode submit eval --out /x --renamed 3  # a comment")
    with pytest.raises(click.UsageError, match="renamed"):
        parse(command)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_flag_named_in_the_text_exists(path):
    spans = re.findall(r"`(--[a-z][\w-]*)[^`]*`", path.read_text(encoding="utf-8"))
    assert set(spans) <= all_flags()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_relative_link_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    relative = [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]
    assert [target for target in relative if not (path.parent / target).exists()] == []
