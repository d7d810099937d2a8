"""A row's rejected drafts against its counts: as many as were drafted and not accepted, each within its round."""

from collections.abc import Iterator

import numpy as np

from adadecode.report.findings import Columns, Wrong, any_value, counts_beside, differs


def rejected(columns: Columns) -> Iterator[Wrong]:
    """What is wrong in single rows that have `rejected`, each kind with a mask of its rows; older ones have none."""
    has = columns.has("rejected")
    num_drafted, num_accepted = columns.numbers("num_drafted"), columns.numbers("num_accepted")
    methods = columns.codes("method")
    missing = columns.is_ok & ~has & columns.has("num_drafted") & np.isin(methods, methods[has])
    yield "rejected is missing, but other rows of its method have it", missing
    yield "rejected is there, but there are no counts of drafts", has & ~columns.has("num_drafted")
    yield (
        "rejected are not num_drafted - num_accepted",
        has & differs(columns.lengths("rejected"), num_drafted - num_accepted),
    )
    rounds, of_row = columns.values("rejected", "round_idx")
    places, _ = columns.values("rejected", "position")
    ids, _ = columns.values("rejected", "token_id")
    yield "rejected has negative token ids", any_value(ids < 0, of_row, columns)
    disorder = (np.diff(rounds) < 0) & (np.diff(of_row) == 0)
    outside = (rounds < 0) | ~(rounds < columns.numbers("num_rounds")[of_row])
    outside |= np.append(disorder, False)[: len(rounds)]
    yield "rejected has rounds that are not the row's, in order", any_value(outside, of_row, columns)
    # a round follows at least one token, and each round before it gave at least one
    early = ~(places > rounds) | ~(places < (columns.numbers("output_len") + num_drafted)[of_row])
    yield "rejected has positions outside of their rounds", any_value(early, of_row, columns)
    exits, of_exit = columns.values("exits")
    drafted, accepted = columns.values("drafted_per_exit")[0], columns.values("accepted_per_exit")[0]
    if len(exits) == len(drafted) == len(accepted):
        found = counts_beside(of_row, columns.values("rejected", "exit")[0], of_exit, exits)
        unlike = has[of_exit] & (found != drafted - accepted)
        yield "rejected are not drafted_per_exit - accepted_per_exit", any_value(unlike, of_exit, columns)
