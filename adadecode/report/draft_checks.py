"""A row's rounds, drafts and layers against its tokens: what the engine counts of them must fit together."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import METHODS, REFERENCE
from adadecode.report.checks import Rules
from adadecode.report.findings import RTOL, Columns, Mask, Wrong, any_value, counts_beside, differs, spread

DRAFTING = ("num_drafted", "num_accepted", "exits", "drafted_per_exit", "accepted_per_exit", "draft_depths")


def rounds(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """Rounds against tokens: each gives one, and what was accepted comes on top."""
    num_rounds, num_accepted = columns.numbers("num_rounds"), np.nan_to_num(columns.numbers("num_accepted"))
    num_later = columns.numbers("output_len") - 1
    yield "there are more rounds than tokens after the first", columns.is_ok & (num_rounds > num_later)
    yield (
        "num_rounds + num_accepted are not the tokens after the first",
        columns.is_ok & differs(num_later, num_rounds + num_accepted),
    )
    most = most_drafts(columns, rules)
    yield "more drafts were accepted than max_drafts a round", (num_accepted > num_rounds * most) | _long(columns, most)


def most_drafts(columns: Columns, rules: Rules) -> NDArray[np.float64]:
    """The most drafts of a round by each row's method, [rows]; NaN where the settings do not tell."""
    known = pc.dictionary_encode(columns.table["method"].combine_chunks())
    most = np.array([rules.most_drafts.get(name) for name in known.dictionary.to_pylist()], float)
    return most[known.indices.to_numpy()]


def _long(columns: Columns, most: NDArray[np.float64]) -> Mask:
    """Where more than so many drafts stand between two tokens of the model's last layer."""
    depths, of_token = columns.values("draft_depths")
    given = np.flatnonzero(depths == model_layers(columns)[of_token])
    of_round = of_token[given[1:]]
    within = of_round == of_token[given[:-1]]
    return any_value(within & (np.diff(given) - 1 > most[of_round]), of_round, columns)


def drafts(columns: Columns) -> Iterator[Wrong]:
    """Drafts against what was accepted of them, exit by exit."""
    is_ok, has = columns.is_ok, {name: columns.has(name) for name in DRAFTING}
    drafting = columns.among("method", [name for name, method in METHODS.items() if method.drafts])
    yield "a method that drafts has no counts of drafts", is_ok & drafting & ~np.all(list(has.values()), axis=0)
    yield "a method that drafts nothing has counts of drafts", is_ok & ~drafting & np.any(list(has.values()), axis=0)
    counted = _counted(columns)
    num_drafted, num_accepted = columns.numbers("num_drafted"), columns.numbers("num_accepted")
    yield "num_accepted is more than num_drafted", counted & ~(num_accepted <= num_drafted)
    for name, per_exit in (("num_drafted", "drafted_per_exit"), ("num_accepted", "accepted_per_exit")):
        yield f"{name} is not the sum of {per_exit}", counted & differs(columns.numbers(name), columns.sums(per_exit))
    unlike = _unlike_exits(columns)
    yield "exits, drafted_per_exit and accepted_per_exit are not of one length", counted & unlike
    yield from _per_exit(columns, counted & ~unlike)


def exit_layers(columns: Columns) -> Iterator[Wrong]:
    """Exits are layers from 1 to L - 1 of a model of L; none that drafts at layers alone has exit 0."""
    exits, of_row = columns.values("exits")
    disorder = (np.diff(exits) <= 0) & (np.diff(of_row) == 0)
    yield (
        "exits do not increase from 0 on",
        any_value(np.append(disorder, False)[: len(exits)] | (exits < 0), of_row, columns),
    )
    late = columns.among(
        "method", [name for name, of in METHODS.items() if (of.exits or of.one_exit) and not of.ngrams]
    )
    yield "exit 0 is of a method that drafts at layers", any_value((exits == 0) & late[of_row], of_row, columns)
    last = model_layers(columns)[of_row]
    yield "exits are not below the model's last layer", any_value(exits >= last, of_row, columns)


def _counted(columns: Columns) -> Mask:
    """The ok rows that have all that is known of drafts."""
    return columns.is_ok & np.all([columns.has(name) for name in DRAFTING], axis=0)


def _unlike_exits(columns: Columns) -> Mask:
    """Where the lists per exit have not one value each."""
    num_exits = columns.lengths("exits")
    unlike = differs(num_exits, columns.lengths("drafted_per_exit"))
    return unlike | differs(num_exits, columns.lengths("accepted_per_exit"))


def _per_exit(columns: Columns, counted: Mask) -> Iterator[Wrong]:
    """The lists of `counted` rows, in which those per exit have one length: value beside value."""
    if not counted.any():
        return
    some = Columns(columns.table.filter(pa.array(counted)))
    exits, of_row = some.values("exits")
    drafted, accepted = some.values("drafted_per_exit")[0], some.values("accepted_per_exit")[0]
    yield (
        "accepted_per_exit has more than drafted_per_exit, or less than none",
        spread(any_value(~((accepted <= drafted) & (accepted >= 0)), of_row, some), counted),
    )
    depths, of_token = some.values("draft_depths")
    found = counts_beside(of_token, depths, of_row, exits)
    yield (
        "accepted_per_exit is not how often draft_depths has each exit",
        spread(any_value(found != accepted, of_row, some), counted),
    )
    by_the_model = np.bincount(of_token[depths == model_layers(some)[of_token]], minlength=some.table.num_rows)
    yield (
        "draft_depths has other depths than exits and the model's last layer",
        spread(by_the_model != some.numbers("num_rounds") + 1, counted),
    )
    yield "draft_depths begins or ends with a draft", spread(_drafted_ends(some, depths, of_token), counted)


def _drafted_ends(columns: Columns, depths: NDArray, of_token: NDArray[np.int64]) -> Mask:
    """Where the prompt's token, or the last, is said to be drafted: transformers alone may draft before its first pass."""
    is_draft = depths != model_layers(columns)[of_token]
    changes = np.flatnonzero(np.diff(of_token))
    is_first, is_last = np.zeros(len(of_token), bool), np.zeros(len(of_token), bool)
    is_first[np.append(0, changes + 1)[: len(of_token)]] = True
    is_last[np.append(changes, len(of_token) - 1)[-len(of_token) :]] = True
    ours = columns.among("method", [name for name, method in METHODS.items() if method.by == "engine"])
    return any_value(is_draft & (is_last | (is_first & ours[of_token])), of_token, columns)


def layers(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """The model has L layers: what vanilla runs per token, what a round runs, and a draft up to its exit."""
    per_token, num_later = columns.numbers("layers_per_token"), columns.numbers("output_len") - 1
    yield (
        "layers_per_token is missing, or there below two tokens",
        columns.is_ok & (np.isnan(per_token) != (num_later < 1)),
    )
    num_layers = model_layers(columns)
    is_whole = ~columns.among("method", [name for name, method in METHODS.items() if method.skips_layers])
    known = columns.is_ok & (num_later > 0) & ~np.isnan(per_token) & ~np.isnan(num_layers)
    of_round = np.where(is_whole, num_layers, num_layers - (np.nan if rules.num_skipped is None else rules.num_skipped))
    layers_run = of_round * columns.numbers("num_rounds") + _layers_drafting(columns)
    yield (
        "layers_per_token is not what these rounds and drafts ran",
        known & ~np.isnan(layers_run) & (np.isinf(per_token) | differs(per_token * num_later, layers_run, RTOL)),
    )
    of_vanilla = columns.numbers("layers_per_token")[columns.is_ok & columns.equal("method", REFERENCE)]
    usual = _commonest(of_vanilla[~np.isnan(of_vanilla)])
    if usual is not None:
        own = np.where(columns.has("draft_depths"), num_layers, np.where(columns.has("num_drafted"), np.nan, per_token))
        yield (
            "the number of the model's layers is not that of the others",
            columns.is_ok & is_whole & ~np.isnan(own) & (own != usual),
        )


def _layers_drafting(columns: Columns) -> NDArray[np.float64]:
    """The layers that drafts took, each those up to its exit, which its round then ran for it again; 0 without drafts.

    NaN where the lists per exit have not one value each, which `drafts` tells.
    """
    found = np.zeros(columns.table.num_rows)
    drafting, unlike = columns.has("drafted_per_exit"), _unlike_exits(columns)
    some = Columns(columns.table.select(["status", "exits", "drafted_per_exit"]).filter(pa.array(drafting & ~unlike)))
    exits, of_row = some.values("exits")
    taken = exits * some.values("drafted_per_exit")[0]
    found[drafting & ~unlike] = np.bincount(of_row, weights=taken, minlength=some.table.num_rows)
    return np.where(unlike, np.nan, found)


def model_layers(columns: Columns) -> NDArray[np.float64]:
    """The model's layers by each row: the depth of what it verified, which no draft has; else vanilla's usual."""
    depths, of_token = columns.values("draft_depths")
    own = np.full(columns.table.num_rows, np.nan)
    np.fmax.at(own, of_token, depths)
    per_token = columns.numbers("layers_per_token")[columns.is_ok & columns.equal("method", REFERENCE)]
    usual = _commonest(per_token[~np.isnan(per_token)])
    return np.where(np.isnan(own), np.nan if usual is None else usual, own)


def _commonest(values: NDArray) -> float | None:
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)]) if len(found) else None
