"""Two servers over real HTTP, prompts, and `adadecode certify` of both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import Result

from tests.completion_server import CompletionServer
from tests.folders import write_prompts

NUM_PROMPTS = 10


class Certified(NamedTuple):
    """What a certification did: exit code and what was printed, and its folder."""

    result: Result
    folder: Path

    @property
    def said(self) -> str:
        return self.result.output

    @property
    def run(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", [f"prompt {idx}" for idx in range(NUM_PROMPTS)])


@pytest.fixture
def certify(cli: Callable[..., Result], prompts: Path, tmp_path: Path) -> Callable[..., Certified]:
    """`adadecode certify` of two servers or URLs, quick and small; `changed` replaces flags, None leaves one out."""

    def run(baseline: CompletionServer | str, candidate: CompletionServer | str, **changed: object) -> Certified:
        flags = {
            "baseline": baseline if isinstance(baseline, str) else baseline.url,
            "candidate": candidate if isinstance(candidate, str) else candidate.url,
            "task": "jsonl",
            "data_file": prompts,
            "passes": 2,
            "max_new_tokens": 8,
            "timeout": 5,
            "retries": 0,
            "max_errors": "100%",
            "out": tmp_path / "run",
        }
        given = {name: value for name, value in (flags | changed).items() if value is not None}
        words = [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]
        return Certified(cli("certify", *words), Path(str(given.get("out", ""))))

    return run
