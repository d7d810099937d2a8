"""How contenders compare: over the faster vanilla, per token where an output ends elsewhere."""

import pytest

from adadecode.engine.policy import VANILLA
from adadecode.tuning.contenders import Contender
from adadecode.tuning.held_out import compare_contenders
from adadecode.tuning.result import TuneRow
from adadecode.tuning.search import Simulator
from tests.unit.tuning.test_search import flat_costs


def row_of(variant: str, sample_id: str, decode_s: float, output_len: int = 11, **changed) -> TuneRow:
    given = {"num_drafted": 0, "num_accepted": 0, "is_exact": True, "layers_run": 40} | changed
    return TuneRow("tiny", sample_id, variant, 0, 0, 5, output_len, 0.1, decode_s, num_rounds=10, **given)


def test_speedups_are_over_the_faster_vanilla_and_per_token_where_an_output_is_shorter(eager):
    rows = [
        *(row_of("vanilla", sample_id, 4.0) for sample_id in "ab"),
        # half as many tokens in half of the time of 3 seconds
        *(row_of("vanilla-w1", sample_id, 1.5, output_len=6, is_exact=False) for sample_id in "ab"),
        *(row_of("tuned", sample_id, 1.0, num_drafted=4, num_accepted=3, layers_run=20) for sample_id in "ab"),
    ]
    contenders = [Contender(name, VANILLA, 8) for name in ("vanilla", "vanilla-w1", "tuned")]
    unseen = Simulator([], eager.space, eager.facts)
    wide, narrow, tuned = compare_contenders(contenders, rows, {"tuned": [True, False]}, unseen, flat_costs())
    assert (wide.speedup.value, narrow.speedup.value) == pytest.approx((3 / 4, 1.0))
    assert (tuned.speedup.value, tuned.speedup_total) == pytest.approx((3.0, 3.0))
    assert (tuned.acceptance_rate, wide.acceptance_rate) == (0.75, None)
    assert (tuned.layers_per_token, tuned.tokens_per_s) == pytest.approx((2.0, 10.0))
    assert (narrow.num_exact, narrow.num_checked) == (0, 2)
    assert (tuned.num_replayed_alike, tuned.num_replayed, wide.num_replayed) == (1, 2, None)
    assert wide.predicted_speedup is None
