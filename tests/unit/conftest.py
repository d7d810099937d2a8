"""A tiny saved model with its heads and prompts, and the command line run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from adadecode.cli.main import main
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts

PROMPTS = ["w10 w20 w30", "w11 w40", "w5 w6 w7 w8 w9", "w90", "w33 w3 w34 w4 w35"]


class Tiny(NamedTuple):
    """Folders of a 4-layer model, heads for it at layers 1 and 2, and five prompts."""

    model: Path
    heads: Path
    prompts: Path

    def flags(self, **changed: object) -> list[str]:
        """A quick float32 run of all of it on the command line; `changed` replaces flags, None leaves one out."""
        flags = {
            "model": self.model,
            "heads": self.heads,
            "task": "jsonl",
            "data_file": self.prompts,
            "dtype": "float32",
            "threads": 1,
            "max_new_tokens": 10,
            "gamma": 0.02,
            "shard_size": 2,
        }
        given = {name: value for name, value in (flags | changed).items() if value is not None}
        return [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    model = save_tiny_model(root / "model")
    return Tiny(model, save_tiny_heads(root / "heads", model, (1, 2)), write_prompts(root / "p.jsonl", PROMPTS))


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """`adadecode ARGUMENTS`; an exception that the command line does not explain is raised here."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def usage_error(cli) -> Callable[..., str]:
    """The one line on stderr with which `adadecode ARGUMENTS` refuses a mistake: exit code 2 and no traceback.

    For a value that click itself refuses the line is its `Error:`, under click's usage lines.
    """

    def refuse(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
        first, *others = result.stderr.splitlines()
        if first.startswith("adadecode: "):
            assert not others, result.stderr
            return first
        assert first.startswith("Usage: "), result.stderr
        assert others[-1].startswith("Error: "), result.stderr
        return others[-1]

    return refuse
