"""What a tuning found, as a value: its exit code, its columns and its JSON."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from adadecode.model.machine_kind import MachineKind
from adadecode.report.stats import Estimate
from adadecode.tuning.costs import Costs
from adadecode.tuning.result import (
    ContenderResult,
    NumPrompts,
    Oracle,
    PredictedSpeedup,
    TuneMachine,
    TuneResult,
    TuneRow,
)
from adadecode.tuning.table import TUNE_ROWS, tune_lines

HERE = MachineKind("some family", 1, "float32", "cache")
ONE = Estimate(1.0, None, None, num_prompts=3)
TUNED = ContenderResult("tuned", 9.0, ONE, ONE, 1.0, None, 4.0, 3, 3, 3, 3)
NARROW = replace(TUNED, variant="vanilla-w1", num_exact=2, num_replayed_alike=None, num_replayed=None)


def result_of(*contenders: ContenderResult) -> TuneResult:
    costs = Costs(np.array([0.5, 0.25]), 1.0, 0.0, 0.0, 0.0, 0.0)
    found = (NumPrompts(4, 3), {}, PredictedSpeedup(1.5, 1.4), Oracle(2.0, 2.5))
    return TuneResult({}, {}, *found, contenders, costs, TuneMachine("cpu", 1, HERE, None, "highest", False), {})


@pytest.mark.parametrize(
    ("tuned", "code"), [(TUNED, 0), (replace(TUNED, num_exact=2), 3), (replace(TUNED, num_replayed_alike=2), 1)]
)
def test_the_exit_code_allows_width_one_to_differ_and_nothing_else(tuned, code):
    assert result_of(NARROW, tuned).exit_code == code


def test_a_replay_that_differs_is_said():
    assert not any("predictions do not hold" in line for line in tune_lines(result_of(NARROW, TUNED)))
    lines = tune_lines(result_of(NARROW, replace(TUNED, num_replayed_alike=1)))
    assert lines[-1] == "tuned: the replay differs from the engine on 2 of 3 prompts; predictions do not hold"


def test_the_json_names_the_oracles_as_the_tables_do_and_the_rows_are_the_columns():
    stored = json.loads(json.dumps(result_of(TUNED).to_json()))
    assert stored["oracle"] == {"oracle": 2.0, "oracle with n-grams": 2.5}
    assert stored["machine"]["kind"] == HERE._asdict()
    assert stored["costs"]["seconds"] == [0.5, 0.25]
    assert stored["variants"][0]["speedup"] == {"value": 1.0, "low": None, "high": None, "num_prompts": 3}
    assert [field.name for field in fields(TuneRow)] == TUNE_ROWS.names
