"""docs/cli.md, made from the commands: `python -m adadecode.cli.reference > docs/cli.md`."""

from collections.abc import Iterator

import click

from adadecode.cli.main import main

HEAD = """# Command line

*Made from the program by `python -m adadecode.cli.reference`; a test compares this page with it.*

Settings come from flags and from a YAML file (`--config`); flags win. In the file, names have underscores, and the
decoding settings (`policy`, `gamma`, `exits` and so on) stand flat beside the others or under `decode`.
[commands.md](commands.md) shows every command at work.
"""


def reference() -> str:
    """The page: a section per command with its flags."""
    return "\n".join([HEAD, *(line for name in main.commands for line in sections(name, main.commands[name]))])


def sections(name: str, command: click.Command) -> Iterator[str]:
    """The section of `command`, and of a group those of its commands."""
    yield from section(name, command)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from section(f"{name} {below.name}", below)


def section(name: str, command: click.Command) -> Iterator[str]:
    """What `adadecode NAME --help` says, as lines of Markdown."""
    arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    yield f"## {name}\n"
    yield f"`{' '.join(['adadecode', name, *arguments, '[FLAGS]'])}`\n"
    yield from (f"{' '.join(paragraph.split())}\n" for paragraph in (command.help or "").split("\n\n"))
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        yield "| flag | what it sets | default |"
        yield "|---|---|---|"
        yield from (row(option) for option in options)
        yield ""


def row(option: click.Option) -> str:
    """The table row of `option`, in Markdown: its flags, what it sets, and its default or `required`."""
    text, _, default = (option.help or "").partition("  [")
    if option.show_default and not default:
        default = f"default: {option.default}]"
    if option.required:
        default = "required]"
    metavar = "" if option.is_flag else f" {option.make_metavar(click.Context(main))}"
    flags = " / ".join([*option.opts, *option.secondary_opts])
    cells = (f"`{flags}{metavar}`", text, default.removesuffix("]").removeprefix("default: "))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
