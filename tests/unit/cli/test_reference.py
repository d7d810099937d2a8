"""docs/cli.md is what the commands say of themselves."""

from pathlib import Path

from adadecode.cli.main import main
from adadecode.cli.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_made_from_the_commands():
    assert PAGE.read_text(encoding="utf-8") == reference(), "python -m adadecode.cli.reference > docs/cli.md"


def test_every_command_and_flag_is_on_the_page():
    text = reference()
    for name, command in main.commands.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert flag in section or not flag.startswith("--"), (name, flag)


def test_a_bar_in_a_cell_does_not_end_it():
    row = next(line for line in reference().splitlines() if line.startswith("| `--dtype "))
    assert row.replace("\\|", "").count("|") == 4
