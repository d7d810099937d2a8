"""A certification from its plan to its tables: a shard is one prompt in all passes, committed when all of it was asked."""

import contextlib
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode.certify.apis import APIS
from adadecode.certify.prompt import check_askable
from adadecode.certify.result import KIND, CertifyResult, read_certification
from adadecode.certify.sides import Access, Servers, access_to, connected, without_secrets
from adadecode.errors import AdaDecodeError
from adadecode.evaluation.stop import StopRequest
from adadecode.files import short_hash
from adadecode.provenance import provenance
from adadecode.records import Say, Shard, ShardOutcome
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.lease import Lease
from adadecode.runs.plan import make_plan, plan_hash, plan_table
from adadecode.runs.run_file import refuse_others_results
from adadecode.runs.storage import open_storage
from adadecode.settings import PATIENCE, CertifyConfig
from adadecode.tasks import expand_task, find_task, load_examples


@dataclass(frozen=True)
class Prepared:
    """A certification whose folder is open; `access` has what no folder holds."""

    servers: Servers
    access: Mapping[str, Access]
    folder: RunFolder
    shards: tuple[Shard, ...]
    committed: Mapping[int, ShardOutcome]
    lease: Lease

    @property
    def todo(self) -> tuple[Shard, ...]:
        """The prompts that have no commit."""
        return tuple(shard for shard in self.shards if shard.shard_idx not in self.committed)


# Does every prompt that has no commit; returns why it ended early, None where it did not.
AskAll = Callable[[Prepared, Say, StopRequest], str | None]


def certify(
    config: CertifyConfig,
    out: str | Path | None,
    keys: Mapping[str, str],
    say: Say,
    stop: StopRequest,
    ask_all: AskAll,
) -> CertifyResult:
    """Runs or finishes the certification of `config` in the folder or URL `out`, `results/certify-<fingerprint>` when None.

    `keys` has the API key of each side that needs one. What failed before is asked again, what was finished is not. Raises
    UsageError where a server cannot be asked, LeaseError and RunFolderError, and what `ask_all` raises, after the tables
    are written of what is committed.
    """
    access = access_to(config, keys)
    with (
        connected(config, access, socket.gethostname(), config.concurrency) as servers,
        _opened(servers, access, out) as prepared,
    ):
        for line in _headings(prepared):
            say(line)
        stopped = None
        try:
            stopped = ask_all(prepared, say, stop)
        except KeyboardInterrupt:
            if not stop.is_made:
                raise
        except AdaDecodeError:
            stop.end()
            with contextlib.suppress(AdaDecodeError):  # the first error is the one to tell
                _closed(prepared, None)
            raise
        stop.end()
        return _closed(prepared, stopped)


@contextlib.contextmanager
def _opened(servers: Servers, access: Mapping[str, Access], out: str | Path | None) -> Generator[Prepared]:
    """The folder of the run, of which this process is the only driver meanwhile."""
    config = servers.config
    tasks = expand_task(config.task)
    shards = make_plan({task: load_examples(task, config) for task in tasks}, shard_size=1)
    check_askable(shards, config.api)
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
        yield Prepared(servers, access, folder, shards, committed, lease)


def _stored_settings(servers: Servers) -> dict[str, Any]:
    """The settings as run.json has them: URLs without passwords, and what was found of each server."""
    kinds = {f"{side}_server": served.kind.name for side, served in servers.sides.items()}
    return without_secrets(servers).model_dump(mode="json") | kinds


def _fingerprint(settings: Mapping[str, Any], plan: pa.Table) -> str:
    """The hash of all that decides what is asked of whom."""
    decisive = {name: value for name, value in settings.items() if name not in (*PATIENCE, "server")}
    return short_hash(json.dumps({**decisive, "plan": plan_hash(plan)}, sort_keys=True, separators=(",", ":")))


def _headings(prepared: Prepared) -> Iterator[str]:
    api = APIS[prepared.servers.config.api]
    for side, served in prepared.servers.sides.items():
        gives_ids = served.kind.extension(api.name).gives_ids
        ids = "token ids are asked for" if gives_ids else f"its /v1/{api.path} gives no token ids: texts are compared"
        yield f"{side}: {served.endpoint.address.url}, {served.kind.name}, model {served.model}; {ids}"
    num_done, config = len(prepared.committed), prepared.servers.config
    yield (
        f"run {prepared.folder.location}: {len(prepared.shards)} prompts x {config.passes} passes x 2 servers, "
        f"{num_done} prompts done before, {len(prepared.shards) - num_done} to do"
    )


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
