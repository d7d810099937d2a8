"""Runs whose processes are killed, stopped and cut off while they work end with the tables of an undisturbed run.

A fault strikes when actors wait for it, after a number of commits and at a point of their work that a seed draws. A few
have a seed in the ordinary suite; `make chaos` runs all faults with all seeds.
"""

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

from adadecode.errors import RunFolderError
from adadecode.runs.folder import read_commits, read_run
from adadecode.settings import EvalConfig
from ray_jobs.events import Died, Event, Item, Loaded
from ray_jobs.pool import Done, Pool, PooledActor
from ray_jobs.scheduler import Limits
from tests.integration.chaos.faults import (
    GATED,
    POINTS,
    POISON,
    ForgetfulEvaluator,
    Gate,
    PoisonedEvaluator,
    evaluator_pids,
    num_commits,
)
from tests.integration.runs import REPOSITORY, Recorder, deterministic, eval_command, run_on_cluster

PATIENT = Limits(max_deaths=4)
HASTY = Limits(max_deaths=4, first_deadline_s=20.0, least_deadline_s=5.0)
NUM_SHARDS = 8
LAST_MOMENT = NUM_SHARDS - 2  # after so many commits two actors leave one a shard to wait with


def seeds(num: int) -> list:
    """The first in the ordinary suite, the others for `make chaos`."""
    return [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, num))]


def start_gated(config: EvalConfig, out: Path, address: str) -> subprocess.Popen[str]:
    """A driver of its own whose actors wait at the gate of the run."""
    command = eval_command(config.model_copy(update={"address": address}), out, "tests.integration.chaos.gated")
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def has_ended(driver: subprocess.Popen[str]) -> Callable[[], bool]:
    return lambda: driver.poll() is not None


@pytest.mark.parametrize("seed", seeds(6))
def test_actors_killed_at_random_moments_cost_nothing(nodes, config, undisturbed, out, seed):
    rng = random.Random(seed)
    moments = sorted(rng.choices(range(LAST_MOMENT + 1), k=rng.randint(1, 3)))
    with ThreadPoolExecutor(1) as pool, Gate(out) as gate:
        point = rng.choice(POINTS)
        gate.close(moments[0], point)
        running = pool.submit(run_on_cluster, config, out, limits=PATIENT, actor_class=GATED)
        for moment in moments:
            gate.close(moment, point)
            gate.strike(rng.choice(gate.wait_for(1, running.done)), signal.SIGKILL)
        gate.open()
        assert running.result().num_missing == 0
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(6))
def test_a_node_that_is_lost_and_another_that_joins_cost_nothing(nodes, config, undisturbed, out, seed):
    rng = random.Random(100 + seed)
    config = config.model_copy(update={"workers": rng.choice([2, "auto"])})
    with ThreadPoolExecutor(1) as pool, Gate(out) as gate:  # the nodes are this thread's
        gate.close(rng.randrange(LAST_MOMENT), rng.choice(POINTS))  # two shards are left
        running = pool.submit(run_on_cluster, config, out, limits=PATIENT, actor_class=GATED)
        gate.wait_for(2, running.done)
        nodes.lose(rng.randrange(len(nodes.nodes)))
        gate.wait_for_at_most(1)
        nodes.join()
        gate.wait_for(2, running.done)  # there is work for who joined
        gate.open()
        assert running.result().num_missing == 0
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
def test_a_node_that_joins_a_run_of_auto_workers_works(nodes, config, undisturbed, out):
    nodes.lose(0)
    with ThreadPoolExecutor(1) as pool, Gate(out) as gate:
        gate.close(1, "begin")
        config = config.model_copy(update={"workers": "auto"})
        running = pool.submit(run_on_cluster, config, out, limits=PATIENT, actor_class=GATED)
        gate.wait_for(1, running.done)
        nodes.join()
        gate.wait_for(2, running.done)
        gate.open()
        running.result()
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(6))
def test_a_killed_driver_is_followed_by_the_same_command_with_other_workers(nodes, config, undisturbed, out, seed):
    rng = random.Random(200 + seed)
    first, second = (config.model_copy(update={"workers": rng.choice([1, 2])}) for _ in range(2))
    with Gate(out) as gate:
        gate.close(rng.randrange(1, LAST_MOMENT + 1), rng.choice(POINTS))
        driver = start_gated(first, out, nodes.address)
        gate.wait_for(1, has_ended(driver))
        driver.kill()
        driver.communicate()
        gate.wait_for_at_most(0)  # its actors end with it
    before = {idx: commit["attempt"] for idx, commit in read_commits(out).items()}
    assert 0 < len(before) < NUM_SHARDS
    command = eval_command(second.model_copy(update={"address": nodes.address}), out)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    after = {idx: commit["attempt"] for idx, commit in read_commits(out).items()}
    assert before.items() <= after.items(), "a committed shard was computed again"
    assert len(after) == NUM_SHARDS
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_actors_that_die_between_data_and_commit_leave_nothing_that_is_read(nodes, config, undisturbed, out, seed):
    observer = Recorder()
    seeded = type("SeededEvaluator", (ForgetfulEvaluator,), {"seed": str(seed)})
    run_on_cluster(config, out, limits=Limits(max_deaths=20), actor_class=ray.remote(seeded), observer=observer)
    assert observer.lines, "no process died"
    assert deterministic(out).equals(undisturbed)
    data = sorted(str(file.relative_to(out)) for file in out.glob("samples/**/*") if file.is_file())
    assert data == sorted(commit["file"] for commit in read_commits(out).values()), (
        "a writer that died left nothing else"
    )


@pytest.mark.chaos
def test_a_node_with_both_actors_is_lost_at_once(nodes, config, undisturbed, out):
    while nodes.nodes:
        nodes.lose(0)
    nodes.join(num_cpus=2)
    with ThreadPoolExecutor(1) as pool, Gate(out) as gate:
        gate.close(2, "generate")
        running = pool.submit(run_on_cluster, config, out, limits=PATIENT, actor_class=GATED)
        gate.wait_for(2, running.done)
        nodes.lose(0)
        gate.wait_for_at_most(0)
        nodes.join()
        nodes.join()
        gate.wait_for(2, running.done)
        gate.open()
        running.result()
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("kilobytes", [100, 180])
def test_a_full_disk_is_one_line_and_the_same_run_goes_on_when_there_is_room(
    nodes, config, undisturbed, out, kilobytes
):
    disk = out.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of a few kilobytes needs the right to mount one")
    try:
        with pytest.raises(RunFolderError, match=r"No space left on device.*make room"):
            run_on_cluster(config, disk / "run")
        before = {idx: commit["attempt"] for idx, commit in read_commits(disk / "run").items()}
        assert len(before) < NUM_SHARDS
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run_on_cluster(config, disk / "run").num_missing == 0
        assert before.items() <= {idx: commit["attempt"] for idx, commit in read_commits(disk / "run").items()}.items()
        assert deterministic(disk / "run").equals(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Sleeper(PooledActor):
    """An actor with nothing to load whose work never ends."""

    def __init__(self, worker_id: str, task: None) -> None:
        pass

    def load(self) -> None:
        pass

    def work(self, work: None) -> Done:
        signal.pause()
        return Done(None)


@pytest.mark.chaos
@pytest.mark.parametrize("is_preempted", [True, False])
def test_an_actor_whose_node_was_preempted_is_told_from_one_whose_node_failed(nodes, is_preempted):
    while len(nodes.nodes) > 1:
        nodes.lose(0)
    nodes.until_known()  # else the actor may be placed where there is no node any more
    actors = Pool(ray.remote(Sleeper), None, 1, {"num_cpus": 1})
    actors.start("worker-0")
    seen: list[Event] = []
    while Loaded("worker-0") not in seen:
        seen += [event for event, _ in actors.poll(1.0)]
    actors.assign("worker-0", Item("for ever", None))
    if is_preempted:
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        node = ["--address", nodes.address, "--node-id", nodes.nodes[0].node_id]
        subprocess.run(
            [
                str(Path(sys.executable).with_name("ray")),
                "drain-node",
                *node,
                *reason,
                "--deadline-remaining-seconds",
                "1",
            ],
            check=True,
        )
    nodes.lose(0)
    while not isinstance(seen[-1], Died):
        seen += [event for event, _ in actors.poll(1.0)]
    actors.stop_all()
    assert seen[-1].preempted is is_preempted, seen[-1]


def truncate(file, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def flip_a_bit(file, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def remove(file, rng: random.Random) -> None:
    file.unlink()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
def test_damaged_files_are_computed_again(nodes, config, undisturbed, out, damage, seed):
    rng = random.Random(300 + seed)
    run_on_cluster(config, out, stop_after=rng.randrange(1, NUM_SHARDS))
    commits = read_commits(out)
    (out / ".part-00000.parquet.00000000.tmp").write_bytes(b"stale")
    shard_idx = rng.choice(sorted(commits))
    damage(out / commits[shard_idx]["file"], rng)
    result = run_on_cluster(config, out)
    assert read_commits(out)[shard_idx]["attempt"] != commits[shard_idx]["attempt"]
    assert result.num_missing == 0
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_of_two_drivers_at_once_one_runs_and_the_other_names_it(nodes, config, out, seed):
    rng = random.Random(400 + seed)
    with Gate(out) as gate:
        gate.close(rng.randrange(LAST_MOMENT + 1), rng.choice(POINTS))
        first = start_gated(config, out, nodes.address)
        gate.wait_for(1, has_ended(first))
        command = eval_command(config.model_copy(update={"workers": 1, "address": nodes.address}), out)
        second = subprocess.run(command, capture_output=True, text=True)
        gate.open()
        output, _ = first.communicate()
    assert first.returncode == 0, output
    assert second.returncode == 2, second.stdout
    assert f"process {first.pid}" in second.stderr
    assert second.stderr.count("\n") == 1
    assert read_run(out)["status"] == "complete"


@pytest.mark.chaos
@pytest.mark.parametrize("seed", seeds(3))
def test_a_poison_sample_is_an_error_row_and_every_other_row_is_there(nodes, config, undisturbed, out, seed):
    limits = Limits(max_deaths=1 + seed)
    result = run_on_cluster(config, out, limits=limits, actor_class=ray.remote(PoisonedEvaluator))
    assert result.num_missing == 0
    found = deterministic(out)
    is_poison = [row["sample_id"] == POISON for row in found.to_pylist()]
    assert sum(is_poison) == config.repeats * len(config.methods)
    assert {row["error_type"] for row in found.to_pylist() if row["sample_id"] == POISON} == {"WorkerLost"}
    others = [row for row in found.to_pylist() if row["sample_id"] != POISON]
    assert others == [row for row in undisturbed.to_pylist() if row["sample_id"] != POISON]


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_a_hung_actor_is_replaced_within_its_deadline(nodes, config, undisturbed, out, seed):
    rng = random.Random(500 + seed)
    observer = Recorder()
    config = config.model_copy(update={"workers": 1 + seed % 2})
    with ThreadPoolExecutor(1) as pool, Gate(out) as gate:
        gate.close(rng.randrange(1, NUM_SHARDS - 3), rng.choice(POINTS))
        running = pool.submit(run_on_cluster, config, out, limits=HASTY, actor_class=GATED, observer=observer)
        gate.strike(rng.choice(gate.wait_for(1, running.done)), signal.SIGSTOP)
        gate.open()
        result = running.result()
    assert config.workers == 2 or any("took more than" in line for line in observer.lines), observer.lines
    assert result.num_missing == 0
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_tables_do_not_depend_on_the_number_of_workers(nodes, config, undisturbed, out, workers):
    nodes.at_least(workers)
    run_on_cluster(config.model_copy(update={"workers": workers}), out)
    assert deterministic(out).equals(undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on_and_does(nodes, config, out, number):
    with Gate(out) as gate:
        gate.close(2, "generate")
        driver = start_gated(config, out, nodes.address)
        gate.wait_for(1, has_ended(driver))
        driver.send_signal(number)
        assert any("no more shards are begun" in line for line in driver.stdout)  # reads up to it
        gate.open()
        output, _ = driver.communicate()
    assert driver.returncode == 4, output
    last = output.strip().splitlines()[-1]
    num_missing = (NUM_SHARDS - num_commits(out)) * 2 * config.repeats * len(config.methods)
    assert num_missing > 0
    assert f"{num_missing} planned rows are missing" in last
    assert f"--out {out}" in last
    assert read_run(out)["status"] == "incomplete"
    command = eval_command(config.model_copy(update={"address": nodes.address}), out)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(read_commits(out)) == NUM_SHARDS
    left = [psutil.Process(pid) for pid in evaluator_pids()]
    assert psutil.wait_procs(left, timeout=60)[1] == [], "every actor ends with its driver"
