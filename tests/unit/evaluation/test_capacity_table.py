"""What `plan --rates` prints: where each time is from, and what makes it doubtful."""

from adadecode.evaluation.capacity import Capacity, WorkerTime
from adadecode.evaluation.capacity_table import capacity_lines, methods_table, times_table

CAPACITY = Capacity(
    num_shards=3,
    tokens={"vanilla": 100.0, "adadecode": 100.0},
    busy_s={"vanilla": 50.0, "adadecode": 0.0},
    num_same=4,
    num_of_task=0,
    num_of_other_tasks=2,
    other_tasks=("gsm8k",),
    times=(WorkerTime(2, 5400.0, 0.75),),
    measured_on="run r",
    differences=("dtype float32 (here bfloat16)",),
)


def cells(table) -> list[list[str]]:
    return [list(row) for row in zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)]


def test_each_method_and_all_together_have_a_line_and_no_time_has_no_rate():
    assert cells(methods_table(CAPACITY)) == [
        ["vanilla", "100", "50 s", "2.0"],
        ["adadecode", "100", "0 s", "-"],
        ["all", "200", "50 s", "4.0"],
    ]


def test_each_number_of_workers_has_a_line_in_its_unit():
    table = times_table(CAPACITY, "GPU")
    assert str(table.columns[0].header) == "GPUs"
    assert cells(table) == [["2", "1h30m", "3", "75%"]]


def test_the_lines_name_what_was_not_measured_and_other_settings():
    lines = capacity_lines(CAPACITY)
    assert lines[0] == "rates: run r"
    assert lines[1] == (
        "times of 6 samples: 4 as that run measured them; 2 the mean over its other tasks (none of gsm8k there)"
    )
    assert lines[-1] == "warning: the rates are of other settings: dtype float32 (here bfloat16)"
