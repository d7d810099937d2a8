"""Code is scored only where running it is allowed, and such scores last as long as the outputs they are of."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from adadecode.errors import UsageError
from adadecode.scoring.sandbox import Sandbox
from tests.planting import each, plant

ROOT = Path(__file__).parents[3]
ROWS = [
    {
        "task_id": f"Toy/{n}",
        "prompt": f'def add_{n}(x):\n    """x plus {n}."""\n',
        "entry_point": f"add_{n}",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(3)
]


def kind_here() -> str:
    try:
        Sandbox().check()
    except UsageError:
        return "none"
    return "namespaces"


ALLOWED = ("--allow-code-execution", "--sandbox", kind_here())


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory) -> tuple[Path, list[Any]]:
    """A run of three functions, decoded by the demo's model twice each, and the flags of its command."""
    root = tmp_path_factory.mktemp("code")
    data = root / "toy.jsonl"
    rows = [*ROWS, {"task_id": "Toy/untested", "prompt": "def f():\n"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--task",
        "humaneval",
        "--data-file",
        data,
        "--max-new-tokens",
        12,
        "--repeats",
        2,
        "--local",
        "--threads",
        1,
    ]
    result = cli("eval", *flags, "--out", root / "run")
    assert result.exit_code == 0, result.stderr
    assert "humaneval: 18 outputs have no score, which takes running them: adadecode score RUN --allow" in result.stdout
    return root / "run", flags


@pytest.fixture
def code_run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "code"))


def scores_of(run: Path) -> dict[tuple, tuple]:
    rows = pq.read_table(run / "scores.parquet").to_pylist()
    return {
        tuple(row[name] for name in ("sample_id", "method", "repeat", "metric")): (row["score"], row["reason"])
        for row in rows
    }


def solve(run: Path, **bodies: str) -> None:
    """Gives every row of a sample of the run an output: `_0="    return x"` for Toy-0."""
    outputs = {f"Toy-{name[1:]}": body for name, body in bodies.items()}
    plant(run, each(output_text=lambda row: outputs.get(row["sample_id"], row["output_text"])))


def test_what_a_model_wrote_is_run_only_when_allowed(code_run, cli):
    before = scores_of(code_run)
    assert {reason for _, reason in before.values()} == {"the row has no reference"}
    result = cli("score", code_run)
    assert result.exit_code == 0
    assert "18 outputs have no score" in result.stdout
    assert scores_of(code_run) == before


def test_code_is_scored_by_its_tests_and_over_repeats(code_run, cli):
    solve(code_run, _0="    return x\n", _1="    return x + 1\n\ndef more(:", _2="    return x + 3")
    result = cli("score", code_run, *ALLOWED)
    assert result.exit_code == 0, result.stderr
    scores = scores_of(code_run)
    passing = {"Toy-0": (1.0, None), "Toy-1": (1.0, None), "Toy-2": (0.0, "AssertionError")}
    for method in ("vanilla", "vanilla-w1", "adadecode"):
        for sample, scored in passing.items():
            assert {scores[sample, method, repeat, "passed"] for repeat in (0, 1)} == {scored}
            assert scores[sample, method, None, "pass@1"] == scores[sample, method, None, "pass@2"] == (scored[0], None)
        assert scores["Toy-untested", method, 0, "passed"] == (None, "the row has no reference")
        assert ("Toy-untested", method, None, "pass@1") not in scores
    assert "0.667" in result.stdout
    verified = cli("verify", code_run)
    assert "scores humaneval: passed 0.667 (2 without), pass@1 0.667, pass@2 0.667\n" in verified.stdout


def test_an_output_that_does_not_end_is_wrong_and_leaves_the_others_alone(code_run, cli):
    solve(code_run, _0="    while True: pass", _1="    return x + 1")
    assert cli("score", code_run, *ALLOWED, "--timeout", 1).exit_code == 0
    scores = scores_of(code_run)
    assert scores["Toy-0", "vanilla", 0, "passed"] == (0.0, "it ran longer than 1 s")
    assert scores["Toy-1", "vanilla", 0, "passed"] == (1.0, None)


def test_scores_of_code_are_kept_while_the_outputs_are_the_same(code_run, finished, cli):
    solve(code_run, _0="    return x\n")
    cli("score", code_run, *ALLOWED)
    before = scores_of(code_run)
    result = cli("score", code_run)
    assert "have no score" not in result.stdout
    assert scores_of(code_run) == before
    solve(code_run, _0="    return x + 0\n")
    assert "humaneval: 6 outputs have no score" in cli("score", code_run).stdout
    assert {key[0] for key in before.keys() - scores_of(code_run).keys()} == {"Toy-0"}
    solve(code_run, _0="    return x\n")
    assert cli("score", code_run, *ALLOWED).exit_code == 0
    (code_run / "commits" / "00000.json").touch()
    assert cli("eval", *finished[1], "--out", code_run).exit_code in (
        0,
        3,
    )  # planted texts are not those of their tokens
    assert scores_of(code_run) == before, "eval keeps what only running tells"


def test_flags_without_effect_and_limits_that_cannot_be_are_one_line(code_run, run, usage_error):
    for flag, value in (("--sandbox", "none"), ("--timeout", 3), ("--memory-mb", 100)):
        assert usage_error("score", code_run, flag, value) == (
            f"adadecode: {flag} is about programs that are run: give --allow-code-execution too"
        )
    assert "--timeout -1: seconds above 0" in usage_error("score", code_run, *ALLOWED, "--timeout", -1)
    assert "--memory-mb 1: give at least 64" in usage_error("score", code_run, *ALLOWED, "--memory-mb", 1)
    assert "'jail' is not one of 'namespaces', 'none'" in usage_error("score", code_run, "--sandbox", "jail")
    assert usage_error("score", run, *ALLOWED).endswith(
        "no task of this run is scored by running outputs; leave it out"
    )


def without_more_namespaces(*command: str) -> list[str]:
    """`command` where the system allows no more user namespaces."""
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", shell, *command]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(without_more_namespaces("true"), capture_output=True).returncode != 0,
    reason="no user namespace can be had to forbid them in",
)
def test_where_namespaces_are_refused_nothing_runs_and_one_line_says_how_to_go_on(code_run):
    before = scores_of(code_run)
    command = [sys.executable, "-m", "adadecode", "score", str(code_run), "--allow-code-execution"]
    done = subprocess.run(
        without_more_namespaces(*command),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("adadecode: --sandbox namespaces: this system refuses it (unshare: ")
    assert line.endswith("; --sandbox none runs programs without namespaces: only in a container of their own")
    assert scores_of(code_run) == before
