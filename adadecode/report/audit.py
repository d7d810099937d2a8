"""The checks of rows, a table: each row with itself, and the rows of one sample with each other. None needs a model."""

from adadecode.report import draft_checks, rejected_checks, row_checks, sample_checks
from adadecode.report.checks import Check, Rules
from adadecode.report.findings import Columns, Wrong

# What must hold in a row, whatever the run's settings, or between the rows of a sample, all of which are in the table.
ROW_CHECKS: tuple[Check[[Columns], Wrong], ...] = (
    Check(
        "labels", "a row is `ok` or an error, of a known method, and has measurements or an error", row_checks.labels
    ),
    Check(
        "counts",
        "`prompt_len`, `output_len`, `draft_depths` and `step_gaps_s` count the stored ids and rounds; ids are from 0 on",
        row_checks.counts,
    ),
    Check(
        "times",
        "times are positive and finite, no gap is missing or negative, `ttft_s` is within `e2e_s`, which is `ttft_s` + "
        "`decode_s`, and `decode_s` the sum of `step_gaps_s`; `tpot_s` follows",
        row_checks.times,
    ),
    Check("endings", "no token follows one that ends other outputs; `finish_reason` says so", row_checks.endings),
    Check(
        "drafts",
        "no more was accepted than drafted, in all and at each exit, and `draft_depths` has as many of each exit",
        draft_checks.drafts,
    ),
    Check(
        "exits",
        "exits increase and lie in 1..L-1 of a model of L layers; 0 is of n-grams, draft models and Medusa heads",
        draft_checks.exit_layers,
    ),
    Check("worker", "every method was timed on the worker of the vanilla it is timed over", sample_checks.workers),
    Check(
        "prompts",
        "all rows of a sample have one prompt, reference and category, later turns after drawn answers one prompt a repeat",
        sample_checks.prompts,
    ),
    Check(
        "outputs",
        "equal ids have one `output_text`, and equal digests are of equal ids; vanilla's output and digest are the same in "
        "all repeats, or in all that one key draws",
        sample_checks.outputs,
    ),
    Check("turns", "every method had a turn of its own at the sample", sample_checks.turns),
    Check("clock", "a worker's rows were decoded one after the other, in their order", sample_checks.clock),
    Check("owed", "parity and digests are claimed where two outputs are there, and nowhere else", sample_checks.owed),
)

# What the run's settings say of a row too.
RULED_CHECKS: tuple[Check[[Columns, Rules], Wrong], ...] = (
    Check(
        "rounds",
        "there are no more rounds than tokens; rounds and accepted drafts are the tokens after the first, and no round has "
        "more than `max_drafts`",
        draft_checks.rounds,
    ),
    Check("layers", "`layers_per_token` is what so many rounds and drafts at their exits ran", draft_checks.layers),
    Check(
        "rejected",
        "`rejected` has the drafts that were not accepted, of each exit and where their round had them, and the token that "
        "the model gave instead of one is another",
        rejected_checks.rejected,
    ),
    Check("limits", "no output is longer than `max_new_tokens`, or ended by a length it has not", row_checks.limits),
    Check(
        "keys",
        "`sampling_key` is the hash of the seed and the row's sample, repeat and turn where tokens are drawn, and null "
        "where decoding is greedy",
        row_checks.keys,
    ),
    Check("claims", "parity, digests and margins have the form of such, and are there where owed", row_checks.claims),
)
