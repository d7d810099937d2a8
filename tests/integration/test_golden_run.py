"""A run folder that version 0.1.0 wrote: read as it was then, and finished by the command that began it.

The demo's heads and policy are others since: it takes those of then.
"""

import json
import re
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from adadecode.cli.main import main
from adadecode.runs.audit import CHECKS
from adadecode.runs.folder import read_commits, read_run
from tests.integration.runs import deterministic

GOLDEN = Path(__file__).parents[1] / "golden" / "run-0.1.0"
HEADS_OF_THEN = GOLDEN.with_name("heads-0.1.0")
COMMAND = ["eval", "--task", "demo-math", "--limit", "6", "--max-new-tokens", "48", "--shard-size", "1"]
COMMAND += ["--repeats", "2", "--local", "--threads", "1"]
POLICY_OF_THEN = ["--exits", "4,10", "--gamma", "0.6,0.5", "--stop", "token", "--reject", "0.7", "--ngram", "0.5"]
FINGERPRINT = "b93d261f3521951c"
OF_BITS = ["logits_digest", "vanilla_margin", "method_margin"]  # another processor may add in another order
OF_DRAFTS = ["num_rounds", "num_drafted", "num_accepted", "drafted_per_exit", "accepted_per_exit"]
OF_DRAFTS += [
    "draft_depths",
    "layers_per_token",
    "rejected",
]  # n-gram drafts are other ones since, tokens and bits are not


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_run_of_0_1_0_is_told_as_it_was_then(command, tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "complete", tmp_path / "complete")
    monkeypatch.chdir(tmp_path)  # so that the path it names is the one of then
    result = CliRunner().invoke(main, [command, "complete"])
    assert (result.exit_code, result.stderr) == (0, "")
    told = (GOLDEN / f"{command}.txt").read_text(encoding="utf-8")
    assert result.stdout == re.sub(r"audit: \d+ checks", f"audit: {len(CHECKS)} checks", told)
    assert contents(tmp_path / "complete") == contents(GOLDEN / "complete")


def test_a_run_that_0_1_0_began_is_refused_with_the_heads_and_the_policy_of_today(tmp_path):
    out = tmp_path / "interrupted"
    shutil.copytree(GOLDEN / "interrupted", out)
    result = CliRunner().invoke(main, [*COMMAND, "--out", str(out)])
    assert result.exit_code == 2
    assert f"belongs to another run (fingerprint {FINGERPRINT}" in result.stderr
    assert contents(out) == contents(GOLDEN / "interrupted")


def test_a_run_that_0_1_0_began_is_finished_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr("adadecode.tasks.heads.HEADS_DIR", HEADS_OF_THEN)
    out = tmp_path / "interrupted"
    shutil.copytree(GOLDEN / "interrupted", out)
    before = contents(out)
    result = CliRunner().invoke(main, [*COMMAND, *POLICY_OF_THEN, "--out", str(out)])
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "withdrawn" not in result.stdout
    assert "6 samples in 6 shards, 3 done before, 3 to do" in result.stdout
    assert "parity 12/12, logits 12/12" in result.stdout
    after, run = contents(out), read_run(out)
    assert (run["fingerprint"], run["status"]) == (FINGERPRINT, "complete")
    assert run["config"] == json.loads(before["run.json"])["config"]
    kept = [name for name in before if name.startswith(("commits/", "samples/"))]
    assert len(kept) == 6
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert sorted(read_commits(out)) == list(range(6))
    ours, theirs = (deterministic(folder).drop_columns(OF_BITS) for folder in (out, GOLDEN / "complete"))
    assert ours.drop_columns(OF_DRAFTS).equals(theirs.drop_columns(OF_DRAFTS))
    undrafted = pc.field("method") != "adadecode"
    assert ours.filter(undrafted).equals(theirs.filter(undrafted))
