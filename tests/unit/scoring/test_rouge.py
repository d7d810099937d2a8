"""ROUGE of texts short enough to count by hand."""

import importlib.util

import pytest

from adadecode.scoring import rouge
from adadecode.scoring.rouge import SCORER, missing, score


def f_measure(overlap: int, num_output: int, num_reference: int) -> float:
    return 2 * overlap / (num_output + num_reference)


@pytest.mark.parametrize(
    ("output", "reference", "rouge1", "rouge2", "rouge_l"),
    [
        ("the cat sat", "the cat sat", 1, 1, 1),
        ("The CAT, sat.", "the cat sat", 1, 1, 1),
        ("sat cat the", "the cat sat", 1, 0, f_measure(1, 3, 3)),
        ("the cat sat on the mat", "the cat lay on a mat", f_measure(4, 6, 6), f_measure(1, 5, 5), f_measure(4, 6, 6)),
        ("the the the", "the cat", f_measure(1, 3, 2), 0, f_measure(1, 3, 2)),
        ("cats running", "cats run", 1, 1, 1),
        ("", "the cat sat", 0, 0, 0),
        ("the cat sat", "", 0, 0, 0),
        ("猫", "猫", 0, 0, 0),
    ],
    ids=[
        "equal",
        "case and signs",
        "reversed",
        "two words differ",
        "repeated",
        "stemmed",
        "empty",
        "no reference",
        "script",
    ],
)
def test_rouge_counts_words_pairs_and_the_longest_common_subsequence(output, reference, rouge1, rouge2, rouge_l):
    found = score(output, reference)
    assert list(found) == list(SCORER.metrics)
    assert found == pytest.approx({"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l})


def test_without_the_package_the_remedy_is_one_line(monkeypatch):
    assert missing() is None
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge_score" else found(name))
    assert missing() == rouge.REMEDY
    assert "\n" not in rouge.REMEDY
    assert "pip install 'adadecode[rouge]'" in rouge.REMEDY
