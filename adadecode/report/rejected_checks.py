"""A row's rejected drafts against its counts and its rounds: how many there are, where they stood, what refuted them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadecode.report.checks import Rules
from adadecode.report.draft_checks import model_layers, most_drafts
from adadecode.report.findings import Columns, Mask, Wrong, any_value, counts_beside, differs


class Drafts(NamedTuple):
    """Rejected drafts, [D] each: their row, round, position and token, and the first and the last position of the round.

    A round's last position holds the model's own token, which refuted the first draft that it did not accept.
    """

    of_row: NDArray[np.int64]
    round_idx: NDArray[np.float64]
    position: NDArray[np.float64]
    token_id: NDArray[np.float64]
    first: NDArray[np.float64]
    last: NDArray[np.float64]


def rejected(columns: Columns, rules: Rules) -> Iterator[Wrong]:
    """What is wrong in single rows that have `rejected`, each kind with a mask of its rows; older ones have none."""
    has = columns.has("rejected")
    num_drafted, num_accepted = columns.numbers("num_drafted"), columns.numbers("num_accepted")
    yield "rejected is there, but there are no counts of drafts", has & ~columns.has("num_drafted")
    yield (
        "rejected are not num_drafted - num_accepted",
        has & differs(columns.lengths("rejected"), num_drafted - num_accepted),
    )
    rounds, of_row = columns.values("rejected", "round_idx")
    ids, _ = columns.values("rejected", "token_id")
    yield "rejected has negative token ids", any_value(ids < 0, of_row, columns)
    disorder = (np.diff(rounds) < 0) & (np.diff(of_row) == 0)
    outside = (rounds < 0) | ~(rounds < columns.numbers("num_rounds")[of_row])
    outside |= np.append(disorder, False)[: len(rounds)]
    yield "rejected has rounds that are not the row's, in order", any_value(outside, of_row, columns)
    exits, of_exit = columns.values("exits")
    drafted, accepted = columns.values("drafted_per_exit")[0], columns.values("accepted_per_exit")[0]
    if len(exits) == len(drafted) == len(accepted):
        found = counts_beside(of_row, columns.values("rejected", "exit")[0], of_exit, exits)
        unlike = has[of_exit] & (found != drafted - accepted)
        yield "rejected are not drafted_per_exit - accepted_per_exit", any_value(unlike, of_exit, columns)
    yield from _in_rounds(columns, rules, _drafts(columns))


def _in_rounds(columns: Columns, rules: Rules, drafts: Drafts) -> Iterator[Wrong]:
    """The drafts against the round that each was made in: its places, and the token that the model gave at its end."""
    most = most_drafts(columns, rules)[drafts.of_row]
    outside = (drafts.position < drafts.first) | (drafts.position >= drafts.first + most)
    if rules.max_new_tokens is not None:  # a round drafts no further than its own token may follow
        outside |= drafts.position > rules.max_new_tokens - 2
    yield "rejected has positions outside of their rounds", any_value(outside, drafts.of_row, columns)
    late = ~columns.among("method", rules.reject_early)[drafts.of_row]  # where the last layer alone refutes
    place = _place_in_round(drafts)
    yield (
        "rejected are not what followed the accepted drafts of their round",
        any_value(late & (drafts.position != drafts.last + place), drafts.of_row, columns),
    )
    cut = columns.equal("finish_reason", "stop")[drafts.of_row]  # right drafts may stand past a stop string
    cut &= drafts.round_idx == columns.numbers("num_rounds")[drafts.of_row] - 1
    given = _tokens_at(columns, drafts)
    yield (
        "rejected has the model's own token at the end of a round",
        any_value(late & ~cut & (place == 0) & (drafts.token_id == given), drafts.of_row, columns),
    )


def _drafts(columns: Columns) -> Drafts:
    """The rejected drafts whose rounds are known: of rows whose depths tell as many as they count."""
    depths, of_token = columns.values("draft_depths")
    given = np.flatnonzero(depths == model_layers(columns)[of_token])  # one before the first round, and one at each end
    num_given = np.bincount(of_token[given], minlength=columns.table.num_rows)
    first_given = np.cumsum(num_given) - num_given
    first_token = np.searchsorted(of_token, np.arange(columns.table.num_rows))
    rounds, of_row = columns.values("rejected", "round_idx")
    known: Mask = (num_given == columns.numbers("num_rounds") + 1)[of_row]
    known &= (rounds >= 0) & (rounds < columns.numbers("num_rounds")[of_row])
    rounds, of_row = rounds[known], of_row[known]
    before = first_given[of_row] + rounds.astype(np.int64)
    return Drafts(
        of_row=of_row,
        round_idx=rounds,
        position=columns.values("rejected", "position")[0][known],
        token_id=columns.values("rejected", "token_id")[0][known],
        first=given[before] + 1.0 - first_token[of_row],
        last=given[before + 1] + 0.0 - first_token[of_row],
    )


def _place_in_round(drafts: Drafts) -> NDArray[np.int64]:
    """Each draft's place among the rejected ones of its round, from 0; those of a round stand together."""
    count = np.arange(len(drafts.of_row))
    begins = np.ones(len(count), bool)
    begins[1:] = (np.diff(drafts.of_row) != 0) | (np.diff(drafts.round_idx) != 0)
    return count - np.maximum.accumulate(np.where(begins, count, 0)) if len(count) else count


def _tokens_at(columns: Columns, drafts: Drafts) -> NDArray[np.float64]:
    """The output's token at the last position of each draft's round; NaN where there is none."""
    ids, of_token = columns.values("output_token_ids")
    at = np.searchsorted(of_token, drafts.of_row) + drafts.last.astype(np.int64)
    real = at < len(ids)
    real[real] &= of_token[at[real]] == drafts.of_row[real]
    found = np.full(len(at), np.nan)
    found[real] = ids[at[real]]
    return found
