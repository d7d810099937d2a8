"""The sample browser's data: an index of all samples, and their details in compressed blocks, read when looked at."""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from adadecode.methods import names_that_owe
from adadecode.page.vocabulary import Decode, joined, pieces
from adadecode.printable import UNDECODED

MOST_SAMPLES = 10_000  # with rows in a page
PER_BLOCK = 100  # samples that are decompressed together
MOST_CHARACTERS = 20_000  # of one text
MOST_IDS = 20_000  # of one prompt or output
WORST = ("error", "mismatch", "near_tie", "exact")  # of a sample's rows the first of these is its own

KEY = ("task", "sample_id", "turn", "repeat")  # of a sample; of all its rows
# Columns that stand in a page as they are, and all that it reads
SHOWN = (
    *("method", "finish_reason", "parity", "first_diff_idx", "correct", "output_len", "num_rounds", "num_drafted"),
    *("num_accepted", "ttft_s", "tpot_s", "e2e_s", "error_type"),
)
COLUMNS = (
    *(*KEY, *SHOWN, "status", "category", "reference", "prompt_token_ids", "output_token_ids", "output_text"),
    *("draft_depths", "rejected", "error_message"),
)

Row = Mapping[str, Any]


@dataclass
class Browser:
    """The samples of a page so far; `index` and `blocks` are what it holds of them, `num_left_out` what it does not."""

    baselines: Mapping[str, str | None]  # the method whose time a speedup is over, by task
    shown: str | None  # the method whose speedup a sample has in the index
    decode: Decode | None = None
    num_left_out: int = 0
    index: list[list[Any]] = field(default_factory=list[list[Any]])
    blocks: list[str] = field(default_factory=list[str])
    ids: dict[int, None] = field(default_factory=dict[int, None])
    layers: set[int] = field(default_factory=set[int])  # that tokens and rejected drafts come from
    _block: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _pieces: dict[int, str] = field(default_factory=dict[int, str])
    _parts: set[int] = field(default_factory=set[int])  # ids of tokens that are part of a character

    def add(self, table: pa.Table) -> None:
        """Adds the samples of a shard, all of whose rows are in `table`."""
        room = MOST_SAMPLES - len(self.index)
        num_samples = table.group_by(list(KEY)).aggregate([]).num_rows
        self.num_left_out += max(0, num_samples - room)
        if room > 0:
            for rows in islice(_groups(table.select(COLUMNS)), room):
                self._add_sample([_readable(row) for row in rows])

    def close(self) -> None:
        """Ends the last block."""
        if self._block:
            self.blocks.append(compressed(self._block))
            self._block = []

    def vocabulary(self) -> dict[int, str]:
        """The text of every token id in the page; empty where there is no tokenizer."""
        if self.decode is None:
            return {}
        self._know(self.ids)
        return {token_id: self._pieces[token_id] for token_id in self.ids}

    def _add_sample(self, rows: list[Row]) -> None:
        first = rows[0]
        by_method = {row["method"]: row for row in rows}
        base, ours = by_method.get(self.baselines.get(first["task"]) or ""), by_method.get(self.shown or "")
        speedup = _ratio(base, ours)
        exact = names_that_owe("exact")
        found = {"error" if row["status"] != "ok" else row["parity"] for row in rows}
        owed = {"error" if row["status"] != "ok" else row["parity"] for row in rows if row["method"] in exact}
        worst = next((kind for kind in WORST if kind in (owed or found)), None)
        worst = "error" if "error" in found else worst
        self.index.append(
            [first["task"], first["sample_id"], first["turn"], first["repeat"], worst, speedup, _length(ours)]
        )
        self._block.append(self._detail(rows))
        if len(self._block) == PER_BLOCK:
            self.close()

    def _detail(self, rows: list[Row]) -> dict[str, Any]:
        prompt = list(rows[0]["prompt_token_ids"] or [])[:MOST_IDS]
        outputs: list[list[int]] = []
        for row in rows:
            ids = list(row["output_token_ids"] or [])[:MOST_IDS]
            if ids not in outputs:
                outputs.append(ids)
        for ids in (prompt, *outputs, *([d["token_id"] for d in row["rejected"] or []] for row in rows)):
            self.ids.update(dict.fromkeys(ids))
        return {
            "prompt": prompt,
            "category": rows[0]["category"],
            "reference": _cut(rows[0]["reference"]),
            "outputs": outputs,
            "joins": [] if self.decode is None else [self._joins(ids) for ids in (prompt, *outputs)],
            "rows": [self._row(row, outputs) for row in rows],
        }

    def _joins(self, ids: list[int]) -> list[tuple[int, str]]:
        assert self.decode is not None
        self._know(ids)
        return [] if self._parts.isdisjoint(ids) else joined(self.decode, ids, self._pieces)

    def _know(self, ids: Iterable[int]) -> None:
        assert self.decode is not None
        new = pieces(self.decode, dict.fromkeys(token_id for token_id in ids if token_id not in self._pieces))
        self._pieces.update(new)
        self._parts.update(token_id for token_id, text in new.items() if UNDECODED in text)

    def _row(self, row: Row, outputs: list[list[int]]) -> dict[str, Any]:
        ids = list(row["output_token_ids"] or [])[:MOST_IDS]
        depths = None if row["draft_depths"] is None else list(row["draft_depths"])[:MOST_IDS]
        rejected = None if row["rejected"] is None else list(row["rejected"])[:MOST_IDS]
        self.layers.update(depths or (), (draft["exit"] for draft in rejected or ()))
        return {
            **{name: row[name] for name in SHOWN},
            "error_message": _cut(row["error_message"]),
            "text": _cut(row["output_text"]) if self.decode is None else None,
            "output": outputs.index(ids),
            "depths": depths,
            "rejected": None
            if rejected is None
            else [[d["position"], d["token_id"], d["exit"], d["round_idx"]] for d in rejected],
        }


def compressed(value: Any) -> str:
    """`value` as JSON, gzip and base64, which no text in it can leave; numbers that JSON has not are null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return value if value and isinstance(value[0], int) else [_finite(part) for part in value]
    return value


def _groups(table: pa.Table) -> Iterable[list[Row]]:
    """The rows of each sample, turn and repeat, in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in _rows(table):
        groups.setdefault(tuple(row[name] for name in KEY), []).append(row)
    return groups.values()


def _rows(table: pa.Table) -> Iterator[Row]:
    """The rows of `table`; text that is no UTF-8, which a file that is not ours may hold, has signs in its place."""
    columns: dict[str, Sequence[Any]] = {}
    for column in table.schema:
        values = table[column.name]
        if pa.types.is_string(column.type):
            raw = values.cast(pa.binary()).to_pylist()
            columns[column.name] = [None if text is None else text.decode("utf-8", "replace") for text in raw]
        else:
            columns[column.name] = values.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _readable(row: Row) -> Row:
    return dict(row) | {"sample_id": _cut(row["sample_id"], 200), "task": _cut(row["task"], 200)}


def _cut(text: str | None, most: int = MOST_CHARACTERS) -> str | None:
    if text is None or len(text) <= most:
        return text
    return f"{text[:most]} ... ({len(text):,} characters, {most:,} shown)"


def _ratio(base: Row | None, ours: Row | None) -> float | None:
    if base is None or ours is None or not base["e2e_s"] or not ours["e2e_s"]:
        return None
    return base["e2e_s"] / ours["e2e_s"]


def _length(row: Row | None) -> int | None:
    return None if row is None else row["output_len"]
