"""All that `adadecode verify` holds a run to, in one table: a name, what must hold, and what finds where it does not."""

from typing import Any

from adadecode.report.audit import ROW_CHECKS, RULED_CHECKS
from adadecode.report.checks import Check
from adadecode.runs.folder_checks import CLAIM_CHECKS, RUN_CHECKS, SCORES_CHECK
from adadecode.runs.run_checks import SETTLED_CHECKS
from adadecode.runs.shard_checks import COMMIT_CHECKS, SHARD_CHECKS

CHECKS: tuple[Check[..., Any], ...] = (
    *ROW_CHECKS,
    *RULED_CHECKS,
    *SETTLED_CHECKS,
    *SHARD_CHECKS,
    *COMMIT_CHECKS,
    *CLAIM_CHECKS,
    *RUN_CHECKS,
    SCORES_CHECK,
)


def checks_table() -> str:
    """The checks as a table in Markdown, as docs/parity.md has it."""
    return "\n".join(["| check | what must hold |", "|---|---|", *(f"| {of.name} | {of.what} |" for of in CHECKS)])
