"""A small finished run, and copies of it to be altered."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made(tiny, cli, tmp_path_factory) -> Path:
    """A run of five samples by vanilla, the same at width 1, and AdaDecode with early rejection."""
    out = tmp_path_factory.mktemp("page") / "run"
    flags = tiny.flags(methods="vanilla,vanilla-w1,adadecode", reject=0.01, shard_size=5)
    result = cli("eval", *flags, "--ngram", "0.2", "--local", "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))
