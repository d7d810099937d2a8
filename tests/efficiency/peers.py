"""AdaDecode side by side with what a user would pick: same weights, same prompts in tokens, same threads, in turns.

    pip install -r tests/efficiency/peers.txt
    python -m tests.efficiency.peers --model FOLDER --gguf FILE --task gsm8k --limit 12 --out results/peers/gsm8k.parquet

Each peer is a process of its own, and one computes at a time: every prompt goes through all of them, in an order that
turns. Prefill, up to the first token, and decoding are timed apart. A wheel of llama.cpp is built for many processors:
`--llama-server` is one built from its source for this one (`cmake -B build && cmake --build build -t llama-server`).
Prints a table, and keeps a row per prompt and peer in `--out`; the same command goes on from there.
"""

import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.cli.console import say
from adadecode.errors import AdaDecodeError, UsageError
from adadecode.files import make_folder, whole_file
from adadecode.methods import REFERENCE, in_turn
from adadecode.model.load import load_model
from adadecode.provenance import cpu_name, provenance
from adadecode.records import Prompt
from adadecode.settings import DataSettings, GenerateConfig, given_flags, settings_of
from adadecode.tasks import load_found
from adadecode.tasks.usable import usable_prompts
from tests.efficiency.peers_engines import PEERS, Continuation, Given, serve
from tests.efficiency.peers_table import print_table
from tests.efficiency.peers_weights import llama_cpp_files

ROOM = 64  # positions beside prompt and output, for drafts that are dropped
WARMUP_TOKENS = 16
PAUSE_S = 0.05  # until the threads of the peer before sleep

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPTIONS = {
    "gguf": "--gguf",
    "drafting": "--heads or --policy",
    "llama_server": "--llama-server",
}  # by field of Given
CONDITIONS = b"conditions"  # where a file keeps them

Row = dict[str, Any]
ROWS = pa.schema(
    [
        ("task", pa.string()),
        ("sample_id", pa.string()),
        ("peer", pa.string()),
        ("order_idx", pa.int32()),
        ("prompt_len", pa.int32()),
        ("num_first", pa.int32()),
        ("output_token_ids", pa.list_(pa.int32())),
        ("prefill_s", pa.float64()),
        ("decode_s", pa.float64()),
        ("threads", pa.int32()),
        ("cpu", pa.string()),
        ("version", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
    ]
)


class PeerProcess:
    """A peer in a process of its own, which ends when the pipe to it is closed: at the latest when this process ends."""

    def __init__(self, name: str, given: Given) -> None:
        context = multiprocessing.get_context("forkserver")  # which imports everything once for all peers
        self.name = name
        self._pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(name, given, theirs)).start()
        theirs.close()
        self.version = self._answer()

    def _answer(self) -> Any:
        """What it sends next: first its version, then a Continuation for each prompt."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise UsageError(
                f"--peers {self.name}: it ended with what it printed above; mend it or leave it out"
            ) from None

    def __call__(self, prompt: Prompt, max_new_tokens: int) -> Continuation:
        self._pipe.send((prompt.token_ids, max_new_tokens))
        return self._answer()

    def close(self) -> None:
        self._pipe.close()


def measure(names: Sequence[str], given: Given, todo: dict[int, Prompt], max_new_tokens: int) -> Iterator[list[Row]]:
    """Yields the rows of each prompt `todo`, by its number in the task: one for each peer, in an order that turns."""
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(contextlib.closing(PeerProcess(name, given))) for name in names}
        for peer in peers.values():
            peer(next(iter(todo.values())), WARMUP_TOKENS)
        for number, prompt in todo.items():
            rows: list[Row] = []
            for order_idx, name in enumerate(in_turn(tuple(names), number)):
                time.sleep(PAUSE_S)
                row: Row = {
                    "task": prompt.task,
                    "sample_id": prompt.sample_id,
                    "peer": name,
                    "order_idx": order_idx,
                }
                row |= {
                    "threads": given.threads,
                    "cpu": cpu_name(),
                    "version": peers[name].version,
                }
                row |= {
                    "prompt_len": len(prompt.token_ids),
                    "started_at": datetime.now(UTC),
                }
                rows.append(row | peers[name](prompt, max_new_tokens)._asdict())
            yield rows


def chosen(names: str | None, given: Given) -> tuple[str, ...]:
    """The peers asked for, all that there is enough for when None; raises UsageError for one that lacks something."""
    lacking = {name: [need for need in row.needs if not getattr(given, need)] for name, row in PEERS.items()}
    if names is None:
        return tuple(name for name in PEERS if not lacking[name])
    asked = tuple(name.strip() for name in names.split(","))
    for name in asked:
        if name not in PEERS:
            raise UsageError(f"--peers {name}: unknown; choose among {', '.join(PEERS)}")
        if lacking[name]:
            raise UsageError(f"--peers {name}: it needs {' and '.join(OPTIONS[need] for need in lacking[name])}")
    if REFERENCE not in asked:
        raise UsageError(f"--peers {names}: {REFERENCE} must be among them, all others are compared with it")
    return asked


def read_rows(out: Path, conditions: dict[str, Any]) -> list[Row]:
    """The rows in `out`, none when it is not there; raises UsageError unless they were measured under `conditions`."""
    if not out.exists():
        return []
    table = pq.read_table(out)
    theirs = json.loads((table.schema.metadata or {}).get(CONDITIONS, b"{}"))
    if differing := [key for key in conditions if conditions[key] != theirs.get(key)]:
        key = differing[0]
        raise UsageError(
            f"--out {str(out)!r} was measured with {key} {theirs.get(key)}, not {conditions[key]}: give another"
        )
    return table.to_pylist()


def write_rows(out: Path, conditions: dict[str, Any], rows: list[Row]) -> None:
    """Writes `rows` to the Parquet file `out` with the `conditions` they were measured under among its metadata."""
    table = pa.Table.from_pylist(rows, schema=ROWS.with_metadata({CONDITIONS: json.dumps(conditions).encode()}))
    with whole_file(out) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")


@click.command()
@click.option(
    "--model",
    required=True,
    metavar="PATH",
    help="A folder with a transformers model, or a hub id.",
)
@click.option("--gguf", type=FILE, help="GGUF file of the same weights, in any type.")
@click.option(
    "--task",
    default="gsm8k",
    show_default=True,
    help="A data set of `adadecode tasks`.",
)
@click.option("--data-file", metavar="FILE", help="Its samples, instead of the hub's.")
@click.option("--limit", default=12, show_default=True, help="The first N samples.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of each peer.")
@click.option("--max-new-tokens", default=96, show_default=True, help="Longest output, in tokens.")
@click.option("--heads", metavar="PATH", help="Exit heads of `adadecode`.")
@click.option("--policy", metavar="NAME", help="Policy of `adadecode`.")
@click.option("--llama-server", type=FILE, help="A llama-server built for this processor.")
@click.option(
    "--peers",
    "names",
    metavar="NAMES",
    help=f"With commas: {', '.join(PEERS)}.  [default: all that can run]",
)
@click.option(
    "--seconds",
    type=float,
    help="Begin no prompt after so long.  [default: until all are measured]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Parquet file; GGUF files go beside it.",
)
def main(
    task: str,
    gguf: Path | None,
    llama_server: Path | None,
    names: str | None,
    max_new_tokens: int,
    seconds: float | None,
    out: Path,
    **flags: Any,
) -> None:
    """Measures the peers on the prompts that --out lacks, and prints the table of all that it has then."""
    began = time.monotonic()
    make_folder(out.parent)
    data = settings_of(
        DataSettings,
        given_flags({name: flags.pop(name) for name in ("data_file", "limit")}),
        {"task": task},
    )
    config = settings_of(GenerateConfig, given_flags(flags), {"max_new_tokens": max_new_tokens})
    decoder, tokenizer = load_model(config)
    prompts = usable_prompts(
        tokenizer,
        {task: load_found(task, data)},
        decoder.context_len,
        decoder.vocab_size,
        say,
    )
    given = Given(
        model=config.model,
        gguf={} if gguf is None else llama_cpp_files(gguf, decoder, out.parent / "gguf"),
        eos_token_ids=sorted(decoder.eos_token_ids),
        threads=flags["threads"],
        num_positions=max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens + ROOM,
        drafting=given_flags({name: flags[name] for name in ("heads", "policy")}),
        llama_server=llama_server,
    )
    peers = chosen(names, given)
    conditions = conditions_of(config, decoder.model_hash, task, peers)
    rows = read_rows(out, conditions)
    measured = {row["sample_id"] for row in rows}
    todo = {number: prompt for number, prompt in enumerate(prompts) if prompt.sample_id not in measured}
    for of_prompt in measure(peers, given, todo, max_new_tokens) if todo else ():
        rows += of_prompt
        write_rows(out, conditions, rows)
        if seconds is not None and time.monotonic() - began > seconds:
            break
    print_table(rows)
    say(f"{len(rows) // len(peers)} of {len(prompts)} prompts in {out}")


def conditions_of(config: GenerateConfig, model_hash: str, task: str, peers: Sequence[str]) -> dict[str, Any]:
    """What decides the figures of a file, beside its prompts."""
    made_by = {name: value for name, value in provenance().items() if not name.startswith("git")}
    settings = config.model_dump(mode="json", exclude={"domain", "kernels"})
    return {
        "task": task,
        "peers": list(peers),
        "model_hash": model_hash,
        "cpu": cpu_name(),
        **settings,
        **made_by,
    }


if __name__ == "__main__":
    try:
        main()
    except AdaDecodeError as error:
        raise SystemExit(str(error)) from None
