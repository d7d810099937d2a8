"""One prompt of a certification, asked of both servers in every pass: its rows, an error a row like any other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from adadecode.certify.apis import APIS
from adadecode.certify.asking import ask
from adadecode.certify.compare import BASELINE, CANDIDATE, SIDES, judged
from adadecode.certify.failures import ServerError
from adadecode.certify.request import Request
from adadecode.certify.sides import Servers
from adadecode.certify.stream import Completion
from adadecode.errors import UsageError
from adadecode.evaluation.rows import LOST, MAX_MESSAGE_LEN, SampleRow, commit_rows
from adadecode.records import Example, Shard, ShardOutcome
from adadecode.report.schema import LOST_BY
from adadecode.runs.folder import RunFolder
from adadecode.settings import ApiName
from adadecode.tasks import score
from adadecode.tasks.data_files import shown


def check_askable(shards: Sequence[Shard], api: ApiName) -> None:
    """Raises UsageError for the first sample that servers cannot be asked by `api`."""
    for shard in shards:
        for example in shard.examples:
            named = f"--task {shard.task}: sample {shown(example.sample_id)} is a conversation"
            if example.later_turns:
                raise UsageError(
                    f"{named} of {example.num_turns} turns, and servers are asked for one answer to a sample: choose "
                    "another task, or give conversations that end with a user's message by --task jsonl --api chat"
                )
            if api == "completions" and not example.prompt:
                raise UsageError(
                    f"{named} of {len(example.messages)} messages, and has no plain prompt to continue: give --api chat"
                )


def do_prompt(servers: Servers, folder: RunFolder, shard: Shard) -> ShardOutcome | None:
    """Asks for the one prompt of `shard` and commits its rows, unless that was done; returns what it came to.

    None, and no commit, when the run was ended meanwhile.
    """
    if (outcome := folder.committed_outcome(shard.shard_idx)) is not None:
        return outcome
    rows = prompt_rows(servers, shard)
    if servers.stopping.is_set():
        return None
    served = {
        f"{side}_{name}": value
        for side, one in servers.sides.items()
        for name, value in (("url", one.endpoint.address.url), ("server", one.kind.name), ("model", one.model))
    }
    return commit_rows(folder, shard, rows, {"worker_id": servers.worker_id, **served})


def prompt_rows(servers: Servers, shard: Shard) -> list[SampleRow]:
    """The rows of the one prompt of `shard`: each pass asks both sides, and which is first alternates."""
    (example,) = shard.examples
    rows = [
        _row(servers, shard, example, side, repeat, order_idx)
        for repeat, order_idx, side in _turns(shard, servers.config.passes)
    ]
    found = {(row.method, row.repeat): row for row in rows if row.status == "ok"}
    return [_with_parity(row, found) for row in rows]


def lost_prompt_rows(shard: Shard, passes: int, reason: str) -> list[SampleRow]:
    """An error row for each side and pass of a prompt that no worker survived."""
    (example,) = shard.examples
    message = f"the prompt ended every worker that asked it: {reason}"
    return [
        _error_row(_identity(shard, example, side, repeat, order_idx, LOST_BY), LOST, message)
        for repeat, order_idx, side in _turns(shard, passes)
    ]


def _turns(shard: Shard, passes: int) -> list[tuple[int, int, str]]:
    """Pass, place in its order, and side of each request for the prompt of `shard`, in the order in which they are made."""
    return [
        (repeat, order_idx, side)
        for repeat in range(passes)
        for order_idx, side in enumerate(SIDES if (shard.shard_idx + repeat) % 2 == 0 else SIDES[::-1])
    ]


def _row(servers: Servers, shard: Shard, example: Example, side: str, repeat: int, order_idx: int) -> SampleRow:
    config, served = servers.config, servers.sides[side]
    identity = _identity(shard, example, side, repeat, order_idx, servers.worker_id)
    request = Request(APIS[config.api], served.kind, served.model, example, config.max_new_tokens)
    try:
        found = ask(served.endpoint, request, config.retries, servers.stopping)
    except ServerError as error:
        return _error_row(identity, error.kind, str(error))
    return SampleRow(**identity, status="ok", **measured(found), correct=_correct(shard.task, found.text, example))


def _identity(shard: Shard, example: Example, side: str, repeat: int, order_idx: int, worker_id: str) -> dict[str, Any]:
    return {
        "task": shard.task,
        "sample_id": example.sample_id,
        "method": side,
        "repeat": repeat,
        "turn": 0,
        "category": example.category,
        "shard": shard.shard_idx,
        "reference": example.reference,
        "lossy": False,
        "order_idx": order_idx,
        "worker_id": worker_id,
        "started_at": datetime.now(UTC),
    }


def _error_row(identity: Mapping[str, Any], error_type: str, message: str) -> SampleRow:
    message = message[:MAX_MESSAGE_LEN]
    return SampleRow(**identity, status="error", finish_reason="error", error_type=error_type, error_message=message)


def measured(found: Completion) -> dict[str, Any]:
    """The columns that come of a completion; None for what the server does not say and what was not measured.

    Times are those of chunks that had tokens, from the request on; what comes after the last of them counts nowhere. An
    output without any chunk has only the time to its end.
    """
    arrivals = found.arrivals_s
    ttft_s, e2e_s = (arrivals[0], arrivals[-1]) if arrivals else (None, found.ended_s)
    decode_s = None if ttft_s is None else e2e_s - ttft_s
    num_later = (found.output_len or 0) - 1
    return {
        "prompt_len": found.prompt_len if found.prompt_token_ids is None else len(found.prompt_token_ids),
        "prompt_token_ids": found.prompt_token_ids,
        "output_len": found.output_len,
        "output_token_ids": found.output_token_ids,
        "output_text": found.text,
        "finish_reason": found.finish_reason,
        "ttft_s": ttft_s,
        "decode_s": decode_s,
        "e2e_s": e2e_s,
        "tpot_s": decode_s / num_later if decode_s is not None and num_later > 0 else None,
        "step_gaps_s": None if ttft_s is None else [later - earlier for earlier, later in pairwise(arrivals)],
        "num_drafted": found.num_drafted,
        "num_accepted": found.num_accepted,
    }


def _correct(task: str, text: str, example: Example) -> bool | None:
    found = score(task, text, example.reference)
    return None if found is None else found == 1.0


def _with_parity(row: SampleRow, found: Mapping[tuple[str, int], SampleRow]) -> SampleRow:
    """`row` with what it owes said of it: the candidate's as the baseline's of its pass, that as its own first."""
    if row.status != "ok" or (row.method, row.repeat) == (BASELINE, 0):
        return row
    partner = found.get((BASELINE, row.repeat if row.method == CANDIDATE else 0))
    line = judged(row.columns(), None if partner is None else partner.columns())
    names = ("parity", "first_diff_idx", "vanilla_token_id", "method_token_id")
    return replace(row, **{name: line[name] for name in names})
