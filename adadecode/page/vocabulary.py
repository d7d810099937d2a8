"""What each token id is as text, where the run's tokenizer is at hand: no network, and only if it gives the run's texts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from adadecode.errors import AdaDecodeError
from adadecode.printable import UNDECODED

Decode = Callable[[list[int]], str]
MOST_READ = 100  # rows that are looked through for them
NUM_CHECKED = 20  # outputs whose text must be what the tokenizer makes of their ids


def decoder(run: Mapping[str, Any]) -> Decode | None:
    """How the tokenizer of the model that run.json names decodes ids; None where it is not on this machine."""
    config = run.get("config")
    model, revision = (config.get(name) for name in ("model", "revision")) if isinstance(config, dict) else (None, None)
    if not isinstance(model, str) or not isinstance(revision, str | None):
        return None
    from adadecode.model.files import on_this_machine
    from adadecode.model.load import load_tokenizer

    source = on_this_machine(model, revision)
    if source is None:
        return None
    try:
        _, tokenizer = load_tokenizer(source)
    except AdaDecodeError:
        return None

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    return decode


def fits(decode: Decode, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `decode` gives the texts of the first ok `rows`, SAMPLES rows, up to the end that was cut off them."""
    told = [row for row in rows if row["status"] == "ok" and row["output_text"] is not None][:NUM_CHECKED]
    try:
        return bool(told) and all(decode(row["output_token_ids"]).startswith(row["output_text"]) for row in told)
    except (OverflowError, TypeError, IndexError, ValueError):
        return False  # ids that the tokenizer has not


def fitting(run: Mapping[str, Any], samples: pa.Table) -> Decode | None:
    """The decoder of the run's model where it gives the texts of `samples`, the rows of one of its shards."""
    decode = decoder(run)
    few = samples.slice(0, MOST_READ).select(["status", "output_text", "output_token_ids"]).to_pylist()
    return decode if decode is not None and fits(decode, few) else None


def pieces(decode: Decode, ids: Iterable[int]) -> dict[int, str]:
    """The text that each of `ids` adds after another token; UNDECODED signs where it is part of a character."""
    found: dict[int, str] = {}
    before: dict[int, str] = {}
    for token_id in ids:
        anchor = token_id
        try:
            if anchor not in before:
                before[anchor] = decode([anchor])
            twice = decode([anchor, token_id])
        except (OverflowError, TypeError, IndexError, ValueError):
            found[token_id] = f"[{token_id}]"
            continue
        alone = before[anchor]
        found[token_id] = twice[len(alone) :] if twice.startswith(alone) else alone
    return found


def joined(decode: Decode, ids: Sequence[int], known: Mapping[int, str]) -> list[tuple[int, str]]:
    """Texts in place of the pieces of `ids` where several tokens make one character: (place, text), the first has all."""
    better: list[tuple[int, str]] = []
    at = 0
    while at < len(ids):
        stop = at
        while stop < len(ids) and UNDECODED in known.get(ids[stop], ""):
            stop += 1
        if stop - at > 1:
            better += [(at, decode(list(ids[at:stop]))), *((place, "") for place in range(at + 1, stop))]
        at = max(stop, at + 1)
    return better


def words(decode: Decode, ids: Sequence[int], known: dict[int, str]) -> list[str]:
    """The text of each of `ids` where it stands; those that are not yet `known` are added there."""
    known.update(pieces(decode, dict.fromkeys(token_id for token_id in ids if token_id not in known)))
    better = dict(joined(decode, ids, known))
    return [better.get(place, known[token_id]) for place, token_id in enumerate(ids)]
