"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of a summary, by the package `rouge-score`: F-measures, words stemmed (Porter).

The whole output is held against the reference; ROUGE-L takes both as one sentence. Words are runs of a to z and digits
in lower case, so a text without any, such as one in another script, scores 0.
"""

import functools
import importlib.util
from typing import Any

from adadecode.scoring.scorer import Scorer

REMEDY = "ROUGE takes the package rouge-score: pip install 'adadecode[rouge]'"


def missing() -> str | None:
    """The remedy where the package is not installed."""
    return None if importlib.util.find_spec("rouge_score") else REMEDY


def score(output_text: str, reference: str) -> dict[str, float]:
    """The F-measures of the output beside the reference, 0.0 to 1.0."""
    return {metric: found.fmeasure for metric, found in _scorer().score(reference, output_text).items()}


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(SCORER.metrics), use_stemmer=True)


SCORER = Scorer("rouge", version=1, metrics=("rouge1", "rouge2", "rougeL"), score=score, missing=missing)
