import re
from pathlib import Path

import click
import pytest

from tests.command_lines import all_flags, parse, program_commands, shell_blocks

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "cluster" / "README.md",
    ROOT / "results" / "README.md",
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


COMMANDS = [
    pytest.param(command, id=f"{name(path)}: {' '.join(command)[:60]}")
    for path in DOCUMENTS
    for block in shell_blocks(path.read_text(encoding="utf-8"))
    for command in program_commands(block)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_is_one_the_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(command)


def test_the_readme_shows_every_command():
    shown = {command[0] for block in shell_blocks(README) for command in program_commands(block)}
    from adadecode.cli.main import main

    assert shown >= set(main.commands)


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


def file_map() -> list[str]:
    """The paths of the README's last section."""
    title, _, body = README.rpartition("\n## ")[2].partition("\n")
    assert title == "File map", "the file map is the last section"
    return [line.split()[0] for line in body.splitlines() if line and not line.startswith("```")]


def test_every_path_in_the_file_map_exists():
    paths = file_map()
    assert len(paths) == len(set(paths))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path in paths if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_the_file_map_names_every_module():
    modules = [file for folder in ("adadecode", "ray_jobs") for file in (ROOT / folder).rglob("*.py")]
    named = [name(module) for module in modules if module.name != "__init__.py"]
    assert sorted(set(named) - set(file_map())) == []


def test_the_file_map_names_every_folder_at_the_top_and_every_file_of_the_cluster():
    cluster = [name(file) for file in (ROOT / "cluster").rglob("*") if file.is_file()]
    documents = [name(path) for path in DOCUMENTS]
    top = ["adadecode/", "ray_jobs/", "cluster/", "docs/", "results/", "tests/"]
    assert sorted({*cluster, *documents, *top} - set(file_map())) == []
