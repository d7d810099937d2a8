"""GSM8K's two extractions, held against answers that are easily read wrong."""

from pathlib import Path

import pytest
import yaml

from adadecode.scoring.gsm8k import SCORER, score

ANSWERS = yaml.safe_load((Path(__file__).parents[2] / "golden" / "gsm8k-answers.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("answer", ANSWERS, ids=[answer["why"] for answer in ANSWERS])
def test_an_answer_is_read_as_the_harness_reads_it(answer):
    expected = {metric: float(answer[metric]) for metric in SCORER.metrics}
    assert score(answer["output"], answer["reference"]) == expected


def test_the_golden_answers_tell_the_extractions_apart():
    assert len(ANSWERS) >= 40
    assert {(answer["strict"], answer["flexible"]) for answer in ANSWERS} == {(0, 0), (0, 1), (1, 0), (1, 1)}
