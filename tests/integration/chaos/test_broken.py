"""One bad place, one node on which loading raises, one stale file handle: the run goes on and lacks nothing."""

import socket
from typing import Any

import pytest
import ray

from adadecode.errors import KernelsError, RunFolderError
from adadecode.runs.folder import read_commits
from ray_jobs.limits import Limits
from tests.integration.chaos.broken import Broken, DyingAtWork, RefusingToLoad, Stale, StaleEverywhere
from tests.integration.runs import Recorder, deterministic, run_on_cluster

LIMITS = Limits(backoff_s=0.5)
HOST = socket.gethostname()


def broken(kind: type[Broken], nodes, out) -> Any:
    """The actor class `kind`, whose bad place is the first node."""
    facts = {"node_id": nodes.nodes[0].node_id, "shown": out.with_name("shown")}
    return ray.remote(type(kind.__name__ + "Evaluator", (kind,), facts))


@pytest.mark.chaos
def test_a_place_at_which_actors_load_and_die_at_work_costs_no_sample(nodes, config, undisturbed, out):
    observer = Recorder()
    actor_class = broken(DyingAtWork, nodes, out)
    result = run_on_cluster(config, out, limits=LIMITS, actor_class=actor_class, observer=observer)
    assert result.num_missing == 0
    assert deterministic(out).equals(undisturbed)
    num_deaths = len(out.with_name("shown").read_text())
    lines = [line for line in observer.lines if f"on {HOST} is gone" in line]
    assert 1 <= len(lines) <= num_deaths, observer.lines  # the last may have had no time to be told


@pytest.mark.chaos
def test_a_node_on_which_loading_raises_is_named_while_the_others_do_the_run(nodes, config, undisturbed, out):
    observer = Recorder()
    actor_class = broken(RefusingToLoad, nodes, out)
    result = run_on_cluster(config, out, limits=LIMITS, actor_class=actor_class, observer=observer)
    assert result.num_missing == 0
    assert deterministic(out).equals(undisturbed)
    assert f"on {HOST} failed: --kernels native: no C++ compiler; install g++" in observer.lines[0]
    assert len({commit["worker"]["worker_id"] for commit in read_commits(out).values()}) == 1


@pytest.mark.chaos
def test_when_loading_raises_on_every_node_the_run_ends_with_that_one_line(nodes, config, out):
    while len(nodes.nodes) > 1:
        nodes.lose(1)
    nodes.until_known()  # else an actor may be placed where there is no node any more
    observer = Recorder()
    with pytest.raises(KernelsError, match=r"no C\+\+ compiler; install g\+\+$"):
        run_on_cluster(
            config.model_copy(update={"workers": 1}),
            out,
            limits=LIMITS,
            actor_class=broken(RefusingToLoad, nodes, out),
            observer=observer,
        )
    assert observer.lines == []


@pytest.mark.chaos
def test_a_stale_handle_at_one_commit_is_one_actors_failure(nodes, config, undisturbed, out):
    observer = Recorder()
    actor_class = broken(Stale, nodes, out)
    result = run_on_cluster(config, out, limits=LIMITS, actor_class=actor_class, observer=observer)
    assert result.num_missing == 0
    assert deterministic(out).equals(undisturbed)
    assert [line for line in observer.lines if f"on {HOST} failed" in line and "Stale file handle" in line]


@pytest.mark.chaos
def test_handles_that_are_stale_for_every_actor_end_the_run_with_that_line(nodes, config, out):
    with pytest.raises(RunFolderError, match=r"Stale file handle.*same command continues"):
        run_on_cluster(config, out, limits=LIMITS, actor_class=broken(StaleEverywhere, nodes, out))
    assert read_commits(out) == {}
    assert run_on_cluster(config, out).num_missing == 0
