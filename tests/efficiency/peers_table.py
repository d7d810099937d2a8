"""What peers.py prints of its rows: a line for each peer, compared with vanilla and with the faster plain llama.cpp."""

from collections.abc import Sequence
from itertools import takewhile
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from adadecode.cli.console import console
from adadecode.methods import REFERENCE
from adadecode.report.cells import ABSENT, cell
from adadecode.report.stats import fastest, geomean_speedup, mean_log_s

PLAIN = ("llama.cpp-bf16", "built-bf16")  # llama.cpp with vanilla's weights, a token at a time

Row = dict[str, Any]


def print_table(rows: Sequence[Row]) -> None:
    """Prints the table of `rows`, all of one task, and which program each peer is."""
    by_peer = {
        name: [row for row in rows if row["peer"] == name] for name in dict.fromkeys(row["peer"] for row in rows)
    }
    out = console()
    out.print(peers_table(by_peer))
    threads = rows[0]["threads"]
    out.print(f"{rows[0]['task']}: {rows[0]['cpu']}, {threads} thread{'s'[: threads > 1]}", highlight=False)
    for name, of_peer in by_peer.items():
        out.print(f"{name}: {'; '.join(sorted({row['version'] for row in of_peer}))}", highlight=False)


def peers_table(by_peer: dict[str, list[Row]]) -> Table:
    """One line for each peer; all have rows of the same prompts, in one order."""
    prompts = np.arange(len(by_peer[REFERENCE]))
    decoded = np.all([[num_decoded(row) > 0 for row in rows] for rows in by_peer.values()], axis=0)
    times_s = {name: token_s(rows)[decoded] for name, rows in by_peer.items()}
    bases = [REFERENCE]
    if plain := [name for name in PLAIN if name in by_peer]:
        bases.append(fastest(mean_log_s, plain, prompts[decoded], times_s))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, caption_justify="left", caption=CAPTION)
    headings = (
        "n",
        "prefill\ntokens/s",
        "decode\ntokens/s",
        *(f"by {base}" for base in bases),
        "vanilla's\ntokens",
        "prefix",
    )
    for heading in ("peer", *headings):
        table.add_column(heading, justify="left" if heading == "peer" else "right", no_wrap=True)
    for name, rows in by_peer.items():
        against = [
            ratio_text(prompts[decoded], times_s[base], times_s[name]) if base != name else "1" for base in bases
        ]
        same, prefix = agreement(rows, by_peer[REFERENCE])
        figures = (len(rows), f"{prefill_rate(rows):.0f}", f"{decode_rate(rows):.1f}", *against, same, prefix)
        table.add_row(*(cell(str(text)) for text in (name, *figures)))
    return table


CAPTION = (
    "by X: decoding alone, seconds per token of X over the peer's, geometric mean of the prompts and its 95 % interval; "
    "prefix: where other tokens began, the median of the prompts where they did"
)


def num_decoded(row: Row) -> int:
    """The tokens that came after the prefill."""
    return len(row["output_token_ids"]) - row["num_first"]


def token_s(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Seconds of decoding per token `[n]`; infinite where the prefill gave all tokens."""
    return np.array([row["decode_s"] / num if (num := num_decoded(row)) else np.inf for row in rows])


def decode_rate(rows: Sequence[Row]) -> float:
    """Tokens per second of decoding, over all prompts."""
    return sum(map(num_decoded, rows)) / sum(row["decode_s"] for row in rows)


def prefill_rate(rows: Sequence[Row]) -> float:
    """Prompt tokens per second until the first token, over all prompts."""
    return sum(row["prompt_len"] for row in rows) / sum(row["prefill_s"] for row in rows)


def ratio_text(prompts: NDArray[np.int64], base_s: NDArray[np.float64], peer_s: NDArray[np.float64]) -> str:
    """The geometric mean of `base_s / peer_s` and its interval, where there is one."""
    found = geomean_speedup(prompts, base_s, peer_s)
    if found is None:
        return ABSENT
    interval = "" if found.low is None else f" ({found.low:.2f}-{found.high:.2f})"
    return f"{found.value:.2f}{interval}"


def agreement(rows: Sequence[Row], reference: Sequence[Row]) -> tuple[str, str]:
    """How many prompts have the reference's tokens, all of them, and the median place of the first other token."""
    pairs = [(row["output_token_ids"], other["output_token_ids"]) for row, other in zip(rows, reference, strict=True)]
    prefixes = [sum(1 for _ in takewhile(bool, map(int.__eq__, *pair))) for pair in pairs if pair[0] != pair[1]]
    return f"{len(pairs) - len(prefixes)}/{len(pairs)}", f"{median(prefixes):.0f}" if prefixes else ABSENT
