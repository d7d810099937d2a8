"""The table of mutations is of this code: what each would change stands once in its file, and its tests are there."""

from pathlib import Path

import pytest

from tests.mutations.table import MUTATIONS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_of_a_line_that_is_there(mutation):
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.before) == 1
    assert mutation.after != mutation.before
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_there_are_forty_of_five_rooms_and_names_are_distinct():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 40
    rooms = {mutation.file.removeprefix("adadecode/").partition("/")[0] for mutation in MUTATIONS}
    assert rooms >= {"report", "evaluation", "engine", "kernels", "runs", "ray_jobs"}
