"""One prompt of a certification, asked of both servers in every pass: its rows, an error a row like any other."""

import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from adadecode.certify.asking import Served, ask
from adadecode.certify.compare import BASELINE, CANDIDATE, SIDES, judged
from adadecode.certify.failures import ServerError
from adadecode.certify.stream import Completion
from adadecode.errors import UsageError
from adadecode.evaluation.rows import MAX_MESSAGE_LEN, SampleRow
from adadecode.records import Example, Shard
from adadecode.settings import CertifyConfig
from adadecode.tasks import score
from adadecode.tasks.data_files import shown


@dataclass(frozen=True)
class Servers:
    """The two sides, by name, and how they are asked."""

    sides: Mapping[str, Served]
    config: CertifyConfig
    stopping: threading.Event


def check_plain(shards: Sequence[Shard]) -> None:
    """Raises UsageError for the first sample that is no single plain prompt, which is all that a server is asked."""
    for shard in shards:
        for example in shard.examples:
            if example.later_turns or not example.prompt:
                what = f"{example.num_turns} turns" if example.later_turns else f"{len(example.messages)} messages"
                raise UsageError(
                    f"--task {shard.task}: sample {shown(example.sample_id)} is a conversation of {what}, and servers are "
                    "asked to continue single plain prompts: choose another task, or give texts by --task jsonl"
                )


def prompt_rows(servers: Servers, shard: Shard) -> list[SampleRow]:
    """The rows of the one prompt of `shard`: each pass asks both sides, and which is first alternates."""
    (example,) = shard.examples
    rows = [
        _row(servers, shard, example, side, repeat, order_idx)
        for repeat in range(servers.config.passes)
        for order_idx, side in enumerate(SIDES if (shard.shard_idx + repeat) % 2 == 0 else SIDES[::-1])
    ]
    found = {(row.method, row.repeat): row for row in rows if row.status == "ok"}
    return [_with_parity(row, found) for row in rows]


def _row(servers: Servers, shard: Shard, example: Example, side: str, repeat: int, order_idx: int) -> SampleRow:
    config = servers.config
    identity: dict[str, Any] = {
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
        "worker_id": socket.gethostname(),
        "started_at": datetime.now(UTC),
    }
    try:
        found = ask(servers.sides[side], example.prompt, config.max_new_tokens, config.retries, servers.stopping)
    except ServerError as error:
        message = str(error)[:MAX_MESSAGE_LEN]
        return SampleRow(
            **identity, status="error", finish_reason="error", error_type=error.kind, error_message=message
        )
    return SampleRow(**identity, status="ok", **measured(found), correct=_correct(shard.task, found.text, example))


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
