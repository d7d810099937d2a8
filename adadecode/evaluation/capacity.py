"""How long a run would take on N workers, from what another run measured."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from adadecode.errors import RunFolderError, UsageError
from adadecode.records import Shard
from adadecode.report.row_checks import impossible_times
from adadecode.runs.engines import num_engines
from adadecode.runs.folder import read_commits, read_run, read_samples
from adadecode.runs.parquet import read_parquet
from adadecode.runs.plan import longest_first
from adadecode.runs.storage import open_storage
from adadecode.settings import DRAWN_BEFORE, EvalConfig, in_full

# Settings that change how long a sample takes, beside those of `decode`.
DECISIVE_FIELDS = (
    *("model", "revision", "heads", "dtype", "device", "kernels", "methods", "check_logits", "threads"),
    *("gpus_per_worker", "num_shots", "shots_file", "system_prompt", "stop_strings", "task_stops"),
    *DRAWN_BEFORE,
)


Sample = tuple[str, str, str]  # task, sample id, prompt hash: ids of other files may be the same


class Source(IntEnum):
    """What a sample's time is taken from, the best first."""

    SAMPLE = 0
    TASK = 1
    OTHER_TASKS = 2


class Cost(NamedTuple):
    """What one generation takes, or the mean of several: seconds (prefill too) and output tokens."""

    e2e_s: float
    num_tokens: float


@dataclass(frozen=True)
class Rates:
    """What a run measured, over its rows without error.

    `of_sample` goes by task, sample id, prompt hash and method, means over repeats; `of_task` by task and method,
    `of_method` by method, means over samples.
    """

    of_sample: Mapping[tuple[str, str, str, str], Cost]
    of_task: Mapping[tuple[str, str], Cost]
    of_method: Mapping[str, Cost]
    config: Mapping[str, Any]
    measured_on: str


@dataclass(frozen=True)
class WorkerTime:
    """How long a run takes on `num_workers` workers, and the share of that time in which they decode."""

    num_workers: int
    wall_s: float
    busy_share: float

    @property
    def worker_hours(self) -> float:
        return self.num_workers * self.wall_s / 3600


@dataclass(frozen=True)
class Capacity:
    """What a run would take, from the rates of another. Tokens and seconds are expected totals over all repeats.

    Every sample is in one of `num_same` (that run measured it), `num_of_task` (it has the mean of its task) and
    `num_of_other_tasks` (the mean over all tasks: that run has none of `other_tasks`).
    """

    num_shards: int
    tokens: dict[str, float]  # per method
    busy_s: dict[str, float]  # per method
    num_same: int
    num_of_task: int
    num_of_other_tasks: int
    other_tasks: tuple[str, ...]
    times: tuple[WorkerTime, ...]
    measured_on: str
    differences: tuple[str, ...]  # settings of that run that are not this one's


def read_rates(location: str | Path) -> Rates:
    """The rates of the run at `location`, complete or not; raises RunFolderError when it has measured nothing.

    Times that no clock can have shown are left out.
    """
    run = read_run(location)
    try:
        prompt_hash = prompt_hashes(read_parquet(open_storage(location).read("plan.parquet")))
    except (OSError, ValueError, KeyError) as error:  # KeyError: it lacks a column
        raise RunFolderError(f"--rates {str(location)!r}: its plan.parquet cannot be read; give another run") from error
    samples = read_samples(location)
    possible = samples.filter(pa.array(~impossible_times(samples)))
    rows = possible.select(["task", "sample_id", "method", "repeat", "status", "e2e_s", "output_len"]).to_pylist()
    of_repeat: dict[tuple[tuple[str, str], str, int], list[Cost]] = defaultdict(list)  # a cost for each turn
    for row in rows:
        sample = (row["task"], row["sample_id"])
        if row["status"] == "ok" and row["output_len"] is not None and sample in prompt_hash:
            of_repeat[sample, row["method"], row["repeat"]].append(Cost(row["e2e_s"], row["output_len"]))
    costs: dict[tuple[str, str, str, str], list[Cost]] = defaultdict(list)
    for (sample, method, _), of_turns in of_repeat.items():
        costs[(*sample, prompt_hash[sample], method)].append(Cost(*map(sum, zip(*of_turns, strict=True))))
    commits = read_commits(location)
    if not costs:
        raise RunFolderError(
            f"--rates {str(location)!r}: it has no committed row without error that has a time; give another run"
        )
    of_sample = {key: mean_cost(found) for key, found in costs.items()}
    of_task: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    of_method: dict[str, list[Cost]] = defaultdict(list)
    for (task, _, _, method), cost in of_sample.items():
        of_task[task, method].append(cost)
        of_method[method].append(cost)
    return Rates(
        of_sample,
        {key: mean_cost(found) for key, found in of_task.items()},
        {key: mean_cost(found) for key, found in of_method.items()},
        run["config"],
        describe(run, commits),
    )


def prompt_hashes(plan: pa.Table) -> dict[tuple[str, str], str]:
    """The prompt hashes of a PLAN table, by task and sample id."""
    rows = plan.select(["task", "sample_id", "prompt_hash"]).to_pylist()
    return {(row["task"], row["sample_id"]): row["prompt_hash"] for row in rows}


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of `costs`, of which there is at least one, each part by itself."""
    return Cost(*(sum(parts) / len(costs) for parts in zip(*costs, strict=True)))


def describe(run: Mapping[str, Any], commits: Mapping[int, dict[str, Any]]) -> str:
    """Which run it was, on what its workers decoded, and how many engines its times are mixed of."""
    config = run["config"]
    machines = sorted({worker.get("gpu") or _cpu_text(worker) for worker in (c["worker"] for c in commits.values())})
    most = max(num_engines(commits).values(), default=0)
    mixed = f"; its times are averages over {most} engines, see `adadecode report`" if most > 1 else ""
    where = f"{config['dtype']} on {config['device']} ({', '.join(machines)}){mixed}"
    return f"run {run['run_id']}: {config['model']} in {where}"


def _cpu_text(worker: Mapping[str, Any]) -> str:
    threads = worker.get("threads", "an unknown number of")
    return f"{threads} thread{'s' if threads != 1 else ''} of {worker.get('cpu', 'an unknown CPU')}"


def plan_capacity(
    shards: Sequence[Shard], plan: pa.Table, config: EvalConfig, rates: Rates, nums_workers: Sequence[int]
) -> Capacity:
    """What `shards`, whose PLAN table is `plan`, would take on each of `nums_workers`.

    A sample that `rates` has measured, with the same prompt, takes what it took there; another the mean of its task,
    else the mean over all tasks. Raises UsageError when `rates` lack a method of `config`.
    """
    absent = [method for method in config.methods if method not in rates.of_method]
    if absent:
        raise UsageError(
            f"--methods {','.join(config.methods)}: the run of --rates measured {','.join(sorted(rates.of_method))} and "
            f"not {','.join(absent)}; choose among its methods, or give another run"
        )
    tokens: dict[str, float] = dict.fromkeys(config.methods, 0.0)
    busy_s: dict[str, float] = dict.fromkeys(config.methods, 0.0)
    shard_s: list[float] = []  # in the order in which the driver gives shards out
    sources: Counter[Source] = Counter()
    other_tasks = set()
    prompt_hash = prompt_hashes(plan)
    for shard in longest_first(shards):
        shard_s.append(0.0)
        for example in shard.examples:
            sample = (shard.task, example.sample_id, prompt_hash[shard.task, example.sample_id])
            source = Source.SAMPLE
            for method in config.methods:
                cost, of_method = expected_cost(rates, sample, method)
                source = max(source, of_method)
                tokens[method] += config.repeats * cost.num_tokens
                busy_s[method] += config.repeats * cost.e2e_s
                shard_s[-1] += config.repeats * cost.e2e_s
            sources[source] += 1
            if source is Source.OTHER_TASKS:
                other_tasks.add(shard.task)
    return Capacity(
        num_shards=len(shards),
        tokens=tokens,
        busy_s=busy_s,
        num_same=sources[Source.SAMPLE],
        num_of_task=sources[Source.TASK],
        num_of_other_tasks=sources[Source.OTHER_TASKS],
        other_tasks=tuple(sorted(other_tasks)),
        times=tuple(list_schedule(shard_s, num_workers) for num_workers in nums_workers),
        measured_on=rates.measured_on,
        differences=tuple(differences(rates.config, config.model_dump(mode="json"))),
    )


def expected_cost(rates: Rates, sample: Sample, method: str) -> tuple[Cost, Source]:
    """What one generation of `sample` by `method` takes, and what that is taken from."""
    if (*sample, method) in rates.of_sample:
        return rates.of_sample[*sample, method], Source.SAMPLE
    if (sample[0], method) in rates.of_task:
        return rates.of_task[sample[0], method], Source.TASK
    return rates.of_method[method], Source.OTHER_TASKS


def list_schedule(shard_s: Sequence[float], num_workers: int) -> WorkerTime:
    """The time of shards that take `shard_s`, each given in turn to the worker that is free first."""
    free_at = [0.0] * num_workers
    for seconds in shard_s:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    wall_s = max(free_at)
    return WorkerTime(num_workers, wall_s, sum(shard_s) / (num_workers * wall_s) if wall_s else 1.0)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The decisive settings that differ, as `dtype float32 (here bfloat16)`."""
    theirs = in_full(theirs)
    pairs = [(name, theirs.get(name), ours[name]) for name in DECISIVE_FIELDS]
    pairs += [(name, theirs["decode"].get(name), value) for name, value in ours["decode"].items()]
    return [f"{name} {_shown(their)} (here {_shown(our)})" for name, their, our in pairs if their != our]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "not given" if value is None else str(value)
