"""What a run comes to: the lines under its table, what is said on stderr, and the exit code."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adadecode.errors import RunFolderError
from adadecode.report.parity import recompute_parity
from adadecode.report.summary import error_lines, summarise
from adadecode.runs.result import RunResult, read_result

GOLDEN = Path(__file__).parents[2] / "golden" / "run-0.1.0"
ENGINE = "engine: native kernels, AMD EPYC, 1 thread, torch 2.13.0+cpu, Python 3.11.7"


@pytest.fixture
def result_of(samples_table):
    """The result of some samples rows, none of them missing."""

    def judge(*rows) -> RunResult:
        samples = samples_table(*rows)
        verify = recompute_parity(samples)
        return RunResult("results/r", summarise(samples, verify), verify, [], error_lines(samples), 0)

    return judge


def test_a_run_in_parity_exits_0_and_has_no_problem(result_of, row):
    result = result_of(row("vanilla"), row("adadecode"))
    assert result.lines() == ["parity 1/1", "tables: results/r"]
    assert (result.exit_code, result.problem_lines()) == (0, [])


def test_broken_parity_exits_3_and_missing_rows_are_told_beside_it(result_of, row):
    result = result_of(row("vanilla"), row("adadecode", output_token_ids=[5, 9, 7]))
    first, line, *others, last = result.lines()
    assert (first, last) == ("parity 0/1", "tables: results/r")
    assert line.startswith("demo/s0 adadecode repeat 0: mismatch at output position 1: vanilla token 6")
    assert others == []
    assert (result.exit_code, result.problem_lines()) == (3, ["parity broken on 1 of 1 checked outputs"])
    missing = replace(result, num_missing=4)
    assert missing.exit_code == 3
    assert missing.problem_lines("adadecode eval") == [
        "parity broken on 1 of 1 checked outputs",
        "4 planned rows are missing; go on with: adadecode eval",
    ]


def test_a_stored_claim_that_is_wrong_exits_3_although_the_outputs_are_equal(result_of, row):
    result = replace(result_of(row("vanilla"), row("adadecode")), disagreements=["demo/s0: parity is stored as ..."])
    assert result.lines() == ["parity 1/1", "demo/s0: parity is stored as ...", "tables: results/r"]
    assert (result.exit_code, result.problem_lines()) == (
        3,
        ["experiments are mixed, or stored claims wrong: 1, each a line above"],
    )


def test_missing_rows_exit_4_before_anything_is_called_unproved(result_of, row, error_row):
    result = replace(result_of(row("vanilla"), error_row("adadecode")), num_missing=2)
    assert result.exit_code == 4
    assert result.problem_lines() == ["2 planned rows are missing; run the same command again"]


def test_outputs_without_their_partner_exit_1(result_of, row, error_row):
    result = result_of(row("vanilla"), error_row("adadecode"))
    assert result.lines()[1].startswith("errors: 1 of 1 samples failed: adadecode 1 rows")
    assert result.exit_code == 1
    assert result.problem_lines() == [
        "1 outputs of vanilla have none to compare with; see error_message in the samples"
    ]


def test_an_output_without_vanillas_is_neither_owed_nor_makes_up_for_one_that_is(result_of, row, error_row):
    pairs = [error_row("vanilla", "s0"), row("adadecode", "s0"), row("vanilla", "s1")]
    failed = result_of(*pairs, error_row("adadecode", "s1"))
    assert failed.exit_code == 1
    assert failed.problem_lines() == [
        "1 outputs of vanilla have none to compare with; see error_message in the samples"
    ]
    assert result_of(*pairs, row("adadecode", "s1")).exit_code == 0


def test_a_method_that_never_finished_exits_1(result_of, row, error_row):
    result = result_of(row("vanilla"), error_row("vanilla-w1"))
    assert result.exit_code == 1
    assert result.problem_lines() == [f"every sample failed: vanilla-w1 on demo; {result.errors[0]}"]


def test_a_stored_run_is_judged_from_its_tables():
    complete, interrupted = read_result(GOLDEN / "complete"), read_result(GOLDEN / "interrupted")
    assert complete.lines() == ["parity 12/12, logits 12/12", ENGINE, f"tables: {GOLDEN / 'complete'}"]
    assert complete.summary["num_engines"].to_pylist() == [1, 1, 1]
    assert (complete.exit_code, complete.problem_lines()) == (0, [])
    assert (interrupted.exit_code, interrupted.num_missing) == (4, 3 * 3 * 2)


def test_a_run_without_its_plan_cannot_be_judged(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "interrupted", tmp_path / "run"))
    (folder / "plan.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"plan.parquet cannot be read"):
        read_result(folder)
