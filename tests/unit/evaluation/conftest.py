"""Two cells of a sweep."""

import pytest

from adadecode.report.summary import summarise


@pytest.fixture
def summaries(samples_table, row):
    """Two cells of two prompts: one exact at 2.5 s against 5 s, one lossy."""
    vanilla = [row("vanilla", "s0", e2e_s=5.0), row("vanilla", "s1", e2e_s=5.0)]
    exact = [row("adadecode", sample, num_drafted=4, num_accepted=3) for sample in ("s0", "s1")]
    lossy = [
        row("adadecode-unverified", "s0", num_drafted=4, num_accepted=4),
        row("adadecode-unverified", "s1", output_token_ids=[5, 9, 9], parity="mismatch"),
    ]
    return {"adaptive": summarise(samples_table(*vanilla, *exact)), "lossy": summarise(samples_table(*vanilla, *lossy))}
