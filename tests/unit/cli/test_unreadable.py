"""A path that the system refuses to look at, for its length or its permissions, is one line in every setting."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from adadecode.errors import ExitHeadsError, RunFolderError, UsageError
from adadecode.files import make_folder
from adadecode.model.files import ModelFiles, find_model
from adadecode.model.head_files import load_heads
from adadecode.runs.fingerprint import heads_folders, source_hashes
from adadecode.settings import EvalConfig
from tests.models import tiny_model

TOO_LONG = "x" * 5000
NOBODY = 65534


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps this process out of `folder`: by its mode, or, as root is kept out of nothing, as another user."""
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        *((command, "--model") for command in ("generate", "eval", "sweep", "bench", "train-heads", "tune")),
        *((command, "--heads") for command in ("generate", "eval", "sweep", "bench", "tune")),
        *((command, "--data-file") for command in ("eval", "sweep", "bench", "train-heads", "tune", "plan")),
        *((command, "--policy") for command in ("generate", "eval", "sweep", "bench", "plan")),
        *((command, "--out") for command in ("eval", "sweep", "bench", "train-heads", "tune")),
        ("plan", "--rates"),
        ("train-heads", "--outputs"),
        ("report", None),
        ("verify", None),
    ],
)
def test_a_name_that_is_too_long_is_one_line_wherever_it_stands(command, setting, tiny, usage_error, tmp_path):
    given = {} if command in ("report", "verify") else {"--model": tiny.model, "--dtype": "float32", "--threads": 1}
    if command in ("generate", "eval", "sweep", "bench", "tune"):
        given["--heads"] = tiny.heads
    if command in ("eval", "sweep", "bench", "train-heads", "tune", "plan"):
        given |= {"--task": "jsonl", "--data-file": tiny.prompts}
    if command in ("eval", "sweep", "train-heads", "tune"):
        given["--out"] = tmp_path / "out"
    if setting is not None:
        given[setting] = TOO_LONG
    flags = [part for flag, value in given.items() for part in (flag, value)]
    local = ["--local"] if command in ("eval", "sweep") else []
    arguments = {"generate": ["w5"], "report": [TOO_LONG], "verify": [TOO_LONG]}.get(command, [])
    assert TOO_LONG in usage_error(command, *arguments, *flags, *local)


def test_heads_in_a_folder_of_another_user_are_one_line(tmp_path):
    config, model, folder = EvalConfig(heads=str(tmp_path / "heads")), tiny_model(), tmp_path / "heads"
    folder.mkdir()
    with locked(tmp_path):
        with pytest.raises(ExitHeadsError, match=r"--heads '.*/heads': cannot be read \(Permission denied\)"):
            load_heads(folder, model)
        with pytest.raises(
            UsageError, match=r"--heads '.*/heads' cannot be read \(Permission denied\): check its name"
        ):
            heads_folders(config, ("jsonl",))
    with locked(folder), pytest.raises(UsageError, match=r"--heads '.*/heads' cannot be read \(Permission denied\)"):
        source_hashes(config, ("jsonl",))


def test_a_model_in_a_folder_of_another_user_is_one_line(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for kept_out in (tmp_path, folder):
        with locked(kept_out):
            with pytest.raises(UsageError, match=r"cannot be loaded: it cannot be read \(Permission denied\)"):
                find_model(str(folder))
            with pytest.raises(UsageError, match=r"--model '.*/model' cannot be read \(Permission denied\): check its"):
                source_hashes(EvalConfig(model=str(folder), methods=("vanilla",)), ("jsonl",))


def test_a_file_of_a_model_that_cannot_be_looked_at_is_a_reason_and_no_crash(tmp_path):
    files = ModelFiles("a name", str(tmp_path))
    assert files.damage("config.json") is None
    assert files.damage(TOO_LONG) == f"{TOO_LONG} cannot be read (File name too long)"


def test_an_out_folder_of_another_user_is_refused_before_anything_is_computed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        locked(out),
        pytest.raises(RunFolderError, match=r"--out '.*/out' cannot be .*: choose another folder"),
    ):
        make_folder(out)
    make_folder(out)
