"""GSM8K's answers as lm-evaluation-harness reads them (its task `gsm8k`, version 3): strict and flexible.

`strict` takes the number after the first `#### `, with one space: digits, commas and full stops, a minus before them or
not; nothing else counts, so `#### $18` has no answer. `flexible` takes the last number of the text: a run of at least two
signs out of digits, `$`, commas and full stops, or a single digit, a minus before it or not. What is taken is compared as
text, not as a number, once commas, dollar signs and one full stop at its end are gone: `18.00` is not `18`.

The harness stops decoding at `Question:`, so what stands after it does not count here either. The column `correct` is of
another kind: it compares by value, and takes the marked number or else the last one (`adadecode/tasks/gsm8k.py`).
"""

import re

from adadecode.scoring.scorer import Scorer
from adadecode.scoring.stops import until

STOPS = ("Question:", "</s>", "<|im_end|>")
MARKED = re.compile(r"#### (-?[\d.,]+)", re.ASCII)
# Two or more signs of a price or a number, or one digit; a minus may stand before either.
ANY_NUMBER = re.compile(r"-?[$\d.,]{2,}|-?\d+", re.ASCII)


def score(output_text: str, reference: str) -> dict[str, float]:
    """1.0 or 0.0 by each extraction: whether what it takes from the output is `reference`, a number such as `1200`."""
    answer = until(output_text, STOPS)
    marked, numbers = MARKED.findall(answer), ANY_NUMBER.findall(answer)
    taken = {"strict": marked[0] if marked else None, "flexible": numbers[-1] if numbers else None}
    return {metric: float(found is not None and _bare(found) == _bare(reference)) for metric, found in taken.items()}


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


SCORER = Scorer("gsm8k", version=1, metrics=("strict", "flexible"), score=score)
