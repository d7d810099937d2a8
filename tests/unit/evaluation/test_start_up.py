"""Where a worker's time goes before its first sample: laps that add up to it, in facts and in a line."""

import pytest

from adadecode.evaluation.start_up import StartUp, start_up_lines
from adadecode.evaluation.worker import load_worker
from adadecode.settings import EvalConfig, build_settings
from adadecode.stopwatch import Stopwatch, lap, stopwatch

FACTS = {
    "process_s": 1.0,
    "imports_s": 2.5,
    "fetch_s": None,
    "model_s": 0.5,
    "kernels_s": 0.25,
    "rows_s": 0.125,
    "warm_up_s": {"vanilla": 0.25, "adadecode": 0.25},
    "other_s": 0.0,
}


def test_a_second_counts_for_the_lap_begun_last_and_for_no_other():
    watch = Stopwatch(iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0]).__next__)
    outer = watch.begin("model")
    inner = watch.begin("kernels")
    watch.begin(inner)
    watch.begin(outer)
    watch.begin("")
    assert watch.seconds == {"": 1.0 + 5.0, "model": 2.0 + 4.0, "kernels": 3.0}


def test_laps_are_those_of_the_watch_that_runs_and_end_with_an_error_too():
    with lap("nobody counts"):
        pass
    with stopwatch() as watch:
        with stopwatch() as inner, pytest.raises(ValueError, match="x"), lap("failed"):
            raise ValueError("x")
        watch.begin("after")
    assert inner is watch
    assert set(watch.seconds) == {"", "failed"}
    with stopwatch() as another:
        assert another is not watch


def test_a_loaded_workers_facts_say_what_each_part_took(tiny):
    flags = {"model": str(tiny.model), "heads": str(tiny.heads), "task": "jsonl", "dtype": "float32"}
    config = build_settings(EvalConfig, None, flags | {"data_file": str(tiny.prompts)})
    with stopwatch() as watch:
        watch.seconds["process"] = 1.5
        found = load_worker(config, ("jsonl",), "w", 1).facts()["start_up"]
    warm_up = found.pop("warm_up_s")
    assert set(warm_up) == set(config.methods)
    assert min(warm_up.values()) > 0
    assert (found["process_s"], found["imports_s"], found["fetch_s"]) == (1.5, None, None)
    assert min(found[name] for name in ("model_s", "kernels_s", "rows_s")) > 0
    laps = sum(s for s in found.values() if s is not None) + sum(warm_up.values())
    assert laps == pytest.approx(sum(watch.seconds.values()), abs=0.05)


def test_the_line_is_of_the_longest_start_up_and_of_what_took_a_tenth_of_a_second():
    slow, fast = {"worker_id": "w-1", "start_up": FACTS}, {"worker_id": "w-0", "start_up": FACTS | {"imports_s": 1.0}}
    parts = "process 1.0, imports 2.5, model 0.5, kernels 0.2, rows 0.1, warm-up 0.5"
    assert start_up_lines([slow]) == [f"start-up of w-1: 4.9 s ({parts})"]
    assert start_up_lines([fast, slow]) == [f"start-up of w-1, the longest of 2 workers: 4.9 s ({parts})"]


def test_workers_of_one_name_are_each_compared_as_a_resumed_run_has_them():
    first, resumed = (
        {"worker_id": "w-0", "start_up": FACTS},
        {"worker_id": "w-0", "start_up": FACTS | {"imports_s": 1.0}},
    )
    for workers in ([first, resumed], [resumed, first]):
        (line,) = start_up_lines(workers)
        assert line.startswith("start-up of w-0, the longest of 2 workers: 4.9 s (")


def test_a_worker_whose_name_is_anything_has_its_line():
    (line,) = start_up_lines([{"worker_id": [], "start_up": FACTS}])
    assert line.startswith("start-up of []: 4.9 s (")


@pytest.mark.parametrize("stored", [None, 7, [], {}, {"model_s": "1"}, {"model_s": float("nan")}, {"warm_up_s": [1]}])
def test_a_worker_that_does_not_say_is_left_out(stored):
    assert start_up_lines([{"worker_id": "w", "start_up": stored}, {}]) == []


def test_what_a_worker_did_not_do_is_none():
    watch = Stopwatch(iter([0.0, 2.0]).__next__)
    assert StartUp.of(watch) == StartUp(None, None, None, None, None, None, {}, 2.0)
