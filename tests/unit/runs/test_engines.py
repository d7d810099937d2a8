"""Which engines computed a run's shards: what is a disagreement, what is a line, and what older commits cannot say."""

from typing import Any

import pytest

from adadecode.runs.engines import (
    changed_code_notes,
    engine_lines,
    mixed_experiments,
    num_engines,
    published_engine_lines,
    worker_facts,
)

FACTS = {
    "worker_id": "worker-0",
    "host": "a",
    "pid": 7,
    "cpu": "EPYC",
    "gpu": None,
    "gpu_driver": None,
    "cuda": None,
    "threads": 2,
    "kernels": "native",
    "dtype": "bfloat16",
    "python": "3.11.7",
    "torch": "2.13.0",
    "width": 8,
    "model_hash": "m1",
    "heads_hash": {"math": "h1"},
    "exits": {"math": [4, 10]},
    "chat_template_hash": None,
    "code_hash": "c1",
    "git_sha": "0123456789abcdef",
}
OTHER_GPU = {"gpu": "H100", "gpu_driver": "550.1", "cuda": "12.4"}
LOST = {"worker_id": "driver"}


def commits_of(*workers: dict[str, Any], task: str = "math") -> dict[int, dict[str, Any]]:
    return {idx: {"shard": idx, "task": task, "worker": facts} for idx, facts in enumerate(workers)}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in FACTS.items() if name not in names}


def test_one_engine_is_one_line_and_no_disagreement():
    commits = commits_of(FACTS, FACTS | {"worker_id": "worker-1", "host": "b", "pid": 8}, LOST)
    assert mixed_experiments(commits) == []
    assert engine_lines(commits) == ["engine: native kernels, bfloat16, EPYC, 2 threads, torch 2.13.0, Python 3.11.7"]
    assert num_engines(commits) == {"math": 1}


@pytest.mark.parametrize(
    ("fact", "other", "says"),
    [
        ("model_hash", "m2", "weights: m1, m2"),
        ("dtype", "float32", "dtypes: bfloat16, float32"),
        ("chat_template_hash", "t", "chat templates: none, t"),
        ("width", 16, "widths: 16, 8"),
        ("exits", {"math": [4]}, "exits: math 4, math 4-10"),
        ("heads_hash", {"math": "h2"}, "heads: math h1, math h2"),
        ("code_hash", "c2", "code of engine, kernels or model: c1, c2"),
    ],
)
def test_two_experiments_in_one_table_are_a_disagreement(fact, other, says):
    assert mixed_experiments(commits_of(FACTS, FACTS | {fact: other})) == [
        f"shards were computed with different {says}"
    ]
    assert mixed_experiments(commits_of(FACTS, without(fact))) == [], "what one does not say is no difference"
    assert mixed_experiments(commits_of(FACTS, LOST)) == [], "a sample that was lost was decoded by no model"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"kernels": "eager"}, "kernels eager, native"),
        ({"cpu": "Xeon"}, "processor EPYC, Xeon"),
        (OTHER_GPU, "GPU H100, none; driver 550.1, none; CUDA 12.4, none"),
        ({"threads": 1}, "threads 1, 2"),
        ({"torch": "2.14.0"}, "torch 2.13.0, 2.14.0"),
        ({"python": "3.12.1"}, "Python 3.11.7, 3.12.1"),
    ],
)
def test_two_engines_in_one_table_are_told_and_counted(other, says):
    commits = commits_of(FACTS, FACTS | other, FACTS | {"pid": 9})
    assert mixed_experiments(commits) == []
    first, second, mixed = engine_lines(commits)
    assert first == "engine of 2 of 3 shards: native kernels, bfloat16, EPYC, 2 threads, torch 2.13.0, Python 3.11.7"
    assert second.startswith("engine of 1 of 3 shards: ")
    assert mixed == f"2 engines are mixed, so speeds are averages over them: {says}"
    assert num_engines(commits) == {"math": 2}
    (fact,) = list(other)[:1]
    assert num_engines(commits_of(FACTS, without(fact))) == {"math": 1}, "what one does not say is no difference"


@pytest.mark.parametrize("fact", ["code_hash", "model_hash", "threads"])
def test_a_fact_that_some_commits_of_one_version_lack_is_a_value(fact):
    told = FACTS | {"adadecode": "2"}
    silent = {name: value for name, value in told.items() if name != fact}
    commits = commits_of(told, told, silent, without(fact) | {"adadecode": "1"})
    found = num_engines(commits_of(told, silent))["math"] > 1 or mixed_experiments(commits)
    assert found
    assert any(
        line.endswith("not stored") for line in (*mixed_experiments(commits), *engine_lines(commits_of(told, silent)))
    )
    assert mixed_experiments(commits_of(told, without(fact) | {"adadecode": "1"})) == []
    assert num_engines(commits_of(told, without(fact) | {"adadecode": "1"})) == {"math": 1}


@pytest.mark.parametrize("fact", ["attention", "float32_precision", "reduced_precision_sums"])
def test_how_a_gpu_computes_is_a_fact_of_speed(fact):
    assert num_engines(commits_of(FACTS | {fact: "a"}, FACTS | {fact: "b"})) == {"math": 2}


def test_a_published_run_names_the_engines_of_its_run_file():
    one = engine_lines(commits_of(FACTS))
    assert published_engine_lines({"workers": [FACTS, FACTS | {"pid": 8}, LOST]}) == one
    assert len(published_engine_lines({"workers": [FACTS, FACTS | {"threads": 1}]})) == 2
    assert published_engine_lines({}) == []


def test_a_gpu_stands_in_place_of_the_processor():
    (line,) = engine_lines(commits_of(FACTS | OTHER_GPU | {"kernels": "eager"}))
    assert line == (
        "engine: eager kernels, bfloat16, 2 threads, torch 2.13.0, Python 3.11.7, H100 (driver 550.1, CUDA 12.4)"
    )


def test_engines_are_counted_by_task_and_few_have_a_line():
    commits = commits_of(FACTS) | {
        idx: {"shard": idx, "task": "code", "worker": FACTS | {"threads": idx}} for idx in range(1, 7)
    }
    assert num_engines(commits) == {"math": 1, "code": 6}
    *shown, more, mixed = engine_lines(commits)
    assert len(shown) == 4
    assert shown[0].startswith("engine of 2 of 7 shards: native kernels, bfloat16, EPYC, 2 threads")
    assert more == "and 2 more engines, see the workers in run.json"
    assert mixed == "6 engines are mixed, so speeds are averages over them: threads 1, 2, 3, 4, 5, 6"
    assert num_engines(commits_of(LOST)) == {"math": 0}


def test_every_worker_of_a_shard_that_was_done_sample_by_sample_counts():
    commits = commits_of(FACTS | {"others": [FACTS | {"pid": 8, "threads": 4, "model_hash": "m2"}]})
    assert num_engines(commits) == {"math": 2}
    assert mixed_experiments(commits) == ["shards were computed with different weights: m1, m2"]
    assert [facts["pid"] for facts in worker_facts(commits)] == [8, 7]


def test_workers_with_one_host_and_number_are_told_apart_by_their_facts():
    """As two starts in a container are, each of which is its process 1."""
    commits = commits_of(FACTS, dict(FACTS), FACTS | {"threads": 1})
    assert worker_facts(commits) == [FACTS, FACTS | {"threads": 1}]
    assert num_engines(commits) == {"math": 2}


def test_older_commits_name_their_revisions_and_nobody_guesses():
    old = without("code_hash", "dtype")
    commits = commits_of(old, old | {"git_sha": "f" * 40}, FACTS)
    assert mixed_experiments(commits) == []
    first, line = engine_lines(commits)
    assert first == "engine: native kernels, EPYC, 2 threads, torch 2.13.0, Python 3.11.7"
    assert line == (
        "shards are of revisions 0123456789ab, ffffffffffff; whether the code that decodes differs, they do not say"
    )
    assert engine_lines(commits_of(FACTS, FACTS | {"git_sha": "f" * 40})) == engine_lines(commits_of(FACTS)), (
        "the hash of the code says that it is the same"
    )


def test_changed_code_is_told_before_more_is_computed():
    (note,) = changed_code_notes(commits_of(FACTS), "c2", "f" * 40)
    assert note.startswith(
        "the code of engine, kernels or model has changed: committed shards are of c1, those to come of c2"
    )
    assert "choose another --out" in note
    assert changed_code_notes(commits_of(FACTS, LOST), "c1", "f" * 40) == [], "another revision, the same code"
    assert changed_code_notes({}, "c1", None) == []
    old = without("code_hash")
    (note,) = changed_code_notes(commits_of(old), "c2", "f" * 40)
    assert note.startswith("committed shards are of revision 0123456789ab, those to come of ffffffffffff; whether")
    assert changed_code_notes(commits_of(old), "c2", old["git_sha"]) == []
    assert changed_code_notes(commits_of(old), "c2", None) == [], "an installed package has no revision"


@pytest.mark.parametrize("odd", [5, [5], "abc", None, {}])
def test_workers_that_are_no_facts_are_left_out(odd):
    assert worker_facts(commits_of(FACTS | {"others": odd})) == [FACTS]
    assert published_engine_lines({"workers": odd}) == []
