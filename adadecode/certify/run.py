"""A certification from its plan to its tables: a shard is one prompt in all passes, committed when all of it was asked."""

import contextlib
import json
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa

from adadecode.certify.asking import Served, look
from adadecode.certify.compare import SIDES
from adadecode.certify.endpoint import Endpoint, address_of
from adadecode.certify.prompt import Servers, check_plain, prompt_rows
from adadecode.certify.result import KIND, CertifyResult, read_certification
from adadecode.evaluation.progress import total_outcome
from adadecode.evaluation.rows import commit_rows
from adadecode.evaluation.stop import StopRequest
from adadecode.files import short_hash
from adadecode.provenance import provenance
from adadecode.records import Say, Shard, ShardOutcome
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.lease import Lease
from adadecode.runs.plan import make_plan, plan_hash, plan_table
from adadecode.runs.run_file import refuse_others_results
from adadecode.runs.storage import open_storage
from adadecode.settings import PATIENCE, CertifyConfig, allowed_errors
from adadecode.tasks import expand_task, find_task, load_examples

SAY_EACH_S = 10.0
LOOK_EACH_S = 0.2  # at whether the run is to stop

Done = ShardOutcome | Exception  # what a prompt comes to


@dataclass(frozen=True)
class Prepared:
    """A certification whose folder is open."""

    servers: Servers
    folder: RunFolder
    shards: tuple[Shard, ...]
    committed: Mapping[int, ShardOutcome]
    lease: Lease


def certify(
    config: CertifyConfig, out: str | Path | None, keys: Mapping[str, str], say: Say, stop: StopRequest
) -> CertifyResult:
    """Runs or finishes the certification of `config` in the folder or URL `out`, `results/certify-<fingerprint>` when None.

    `keys` has the API key of each side that needs one. What failed before is asked again, what was finished is not. Raises
    UsageError where a server cannot be asked, LeaseError and RunFolderError.
    """
    with _servers(config, keys) as servers, _opened(servers, out) as prepared:
        for line in _headings(prepared):
            say(line)
        stopped = None
        try:
            stopped = _ask_all(prepared, say, stop)
        except KeyboardInterrupt:
            if not stop.is_made:
                raise
        stop.end()
        return _closed(prepared, stopped)


@contextlib.contextmanager
def _servers(config: CertifyConfig, keys: Mapping[str, str]) -> Generator[Servers]:
    """Both servers, each asked what it is."""
    models = {"baseline": config.baseline_model, "candidate": config.candidate_model}
    urls = {"baseline": config.baseline, "candidate": config.candidate}
    addresses = {side: address_of(f"--{side}", urls[side]) for side in SIDES}
    with contextlib.ExitStack() as opened:
        sides: dict[str, Served] = {}
        for side in SIDES:
            endpoint = Endpoint(
                addresses[side],
                keys.get(side),
                timeout_s=config.timeout_s,
                deadline_s=config.deadline_s,
                connections=config.concurrency,
            )
            opened.callback(endpoint.close)
            sides[side] = look(endpoint, side, models[side], config.server)
        yield Servers(sides, config, threading.Event())


@contextlib.contextmanager
def _opened(servers: Servers, out: str | Path | None) -> Generator[Prepared]:
    """The folder of the run, of which this process is the only driver meanwhile."""
    config = servers.config
    tasks = expand_task(config.task)
    shards = make_plan({task: load_examples(task, config) for task in tasks}, shard_size=1)
    check_plain(shards)
    plan = plan_table(shards)
    settings = _stored_settings(servers)
    fingerprint = _fingerprint(settings, plan)
    facts = {
        "kind": KIND,
        "config": settings,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance()
        | {"hashes": {"plan": plan_hash(plan)}, "data": {task: find_task(task).read_from(config) for task in tasks}},
    }
    location = str(Path("results") / f"certify-{fingerprint[:8]}") if out is None else str(out)
    refuse_others_results(location, fingerprint, facts)
    with Lease(open_storage(location)) as lease:
        folder = RunFolder.open(location, fingerprint, facts)
        folder.update_run(status="running")
        folder.check_commits()
        folder.withdraw_errors()
        folder.write_table("plan.parquet", plan)
        committed = {idx: ShardOutcome(**commit["outcome"]) for idx, commit in read_commits(location).items()}
        yield Prepared(servers, folder, shards, committed, lease)


def _stored_settings(servers: Servers) -> dict[str, Any]:
    """The settings as run.json has them: URLs without passwords, and what was found of each server."""
    settings = servers.config.model_dump(mode="json")
    for side, served in servers.sides.items():
        settings |= {
            side: served.endpoint.address.url,
            f"{side}_model": served.model,
            f"{side}_server": served.kind.name,
        }
    return settings


def _fingerprint(settings: Mapping[str, Any], plan: pa.Table) -> str:
    """The hash of all that decides what is asked of whom."""
    decisive = {name: value for name, value in settings.items() if name not in (*PATIENCE, "server")}
    return short_hash(json.dumps({**decisive, "plan": plan_hash(plan)}, sort_keys=True, separators=(",", ":")))


def _headings(prepared: Prepared) -> Iterator[str]:
    for side, served in prepared.servers.sides.items():
        ids = "token ids are asked for" if served.kind.owned_by else "it gives no token ids: texts are compared"
        yield f"{side}: {served.endpoint.address.url}, {served.kind.name}, model {served.model}; {ids}"
    num_done, config = len(prepared.committed), prepared.servers.config
    yield (
        f"run {prepared.folder.location}: {len(prepared.shards)} prompts x {config.passes} passes x 2 servers, "
        f"{num_done} prompts done before, {len(prepared.shards) - num_done} to do"
    )


def _ask_all(prepared: Prepared, say: Say, stop: StopRequest) -> str | None:
    """Does every prompt that has no commit, as many at once as is told; returns why it ended early, None where it did not.

    Begins no more once `stop` is made. When this is interrupted, what is in flight is left alone and never committed: a
    server that is silent is not waited for.
    """
    config = prepared.servers.config
    todo = [shard for shard in prepared.shards if shard.shard_idx not in prepared.committed]
    watch = _Watch(len(prepared.shards), prepared.committed, say)
    allowed = allowed_errors(config.max_errors, len(prepared.shards))
    given: SimpleQueue[Shard | None] = SimpleQueue()
    done: SimpleQueue[Done] = SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(prepared, given, done), name=f"certify-{idx}", daemon=True)
        for idx in range(min(config.concurrency, len(todo)))
    ]
    for thread in threads:
        thread.start()
    left, num_flying = iter(todo), 0
    try:
        while True:
            prepared.lease.check()
            if not stop.is_made and watch.num_failed <= allowed:
                for shard in islice(left, len(threads) - num_flying):
                    given.put(shard)
                    num_flying += 1
            if not num_flying:
                return None if watch.num_failed <= allowed else _too_many_line(watch, allowed, config.max_errors)
            with contextlib.suppress(Empty):
                found = done.get(timeout=LOOK_EACH_S)
                num_flying -= 1
                if isinstance(found, BaseException):
                    raise found
                watch.add(found)
    finally:
        prepared.servers.stopping.set()
        for _ in threads:
            given.put(None)
        watch.say_last()


def _work(prepared: Prepared, given: "SimpleQueue[Shard | None]", done: "SimpleQueue[Done]") -> None:
    """Does the prompts that are given until None is; what each came to, or the error it raised, goes to `done`."""
    while (shard := given.get()) is not None:
        try:
            if (outcome := _do_prompt(prepared, shard)) is not None:
                done.put(outcome)
        except Exception as error:
            done.put(error)


def _do_prompt(prepared: Prepared, shard: Shard) -> ShardOutcome | None:
    """Asks for one prompt and commits its rows; None, and no commit, when the run was ended meanwhile."""
    rows = prompt_rows(prepared.servers, shard)
    if prepared.servers.stopping.is_set():
        return None
    served = {
        f"{side}_{name}": value
        for side, one in prepared.servers.sides.items()
        for name, value in (("url", one.endpoint.address.url), ("server", one.kind.name), ("model", one.model))
    }
    return commit_rows(prepared.folder, shard, rows, {"worker_id": rows[0].worker_id, **served})


def _too_many_line(watch: "_Watch", allowed: int, max_errors: str) -> str:
    return (
        f"{watch.num_failed} of {watch.num_planned} prompts failed, and --max-errors {max_errors} allows {allowed}: what "
        "is finished stays, so remove the cause and run the same command again, or go on with a higher --max-errors"
    )


class _Watch:
    """Counts the prompts that are done and says now and then how far the run is."""

    def __init__(self, num_planned: int, before: Mapping[int, ShardOutcome], say: Say) -> None:
        self.num_planned, self._say = num_planned, say
        self._total = total_outcome(before.values())
        self._num_before = self._total.num_samples
        self._said_at = time.monotonic()

    @property
    def num_failed(self) -> int:
        return self._total.num_error_samples

    def add(self, outcome: ShardOutcome) -> None:
        self._total = total_outcome([self._total, outcome])
        if time.monotonic() - self._said_at >= SAY_EACH_S:
            self._said_at = time.monotonic()
            self._say(self._line())

    def say_last(self) -> None:
        if self._total.num_samples > self._num_before:
            self._say(self._line())

    def _line(self) -> str:
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        return f"{self._total.num_samples} of {self.num_planned} prompts done{failed}"


def _closed(prepared: Prepared, stopped: str | None) -> CertifyResult:
    """Writes verify.parquet and summary.parquet from the committed rows and sets the run's status and verdict."""
    prepared.lease.check()
    folder = prepared.folder
    result = read_certification(folder.location, stopped)
    prepared.lease.confirm()
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)
    if not result.num_missing:
        folder.sweep({commit["file"] for commit in read_commits(folder.location).values()})
    status = "incomplete" if result.num_missing else "complete"
    folder.update_run(status=status, verdict=result.verdict.to_json())
    return result
