"""The clock of a generation, which stands still while logits are kept."""

import pytest
import torch

from adadecode.engine import tally
from adadecode.engine.round import Round
from adadecode.engine.tally import Tally

CPU = torch.device("cpu")
COPY_NS = 1_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now = 5

    def __call__(self, device: torch.device) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(tally, "clock_ns", fake)
    return fake


class SlowLogits:
    """Logits `[4, 3]` of a device, whose copy to the host takes COPY_NS."""

    def __init__(self, clock: FakeClock, num_rows: int = 4) -> None:
        self._clock, self._num_rows = clock, num_rows

    def __getitem__(self, rows: slice | None) -> "SlowLogits":
        return SlowLogits(self._clock, 1 if rows is None else rows.stop)

    def to(self, device: str, *, copy: bool) -> torch.Tensor:
        assert (device, copy) == ("cpu", True)
        self._clock.now += COPY_NS
        return torch.zeros(self._num_rows, 3)


@pytest.mark.parametrize("record_logits", [False, True])
def test_keeping_logits_takes_no_time_of_the_generation(clock, record_logits):
    counts = Tally(CPU, 4, (2,), record_logits=record_logits)
    clock.now += 100
    counts.add_token(SlowLogits(clock))
    for taken in (30, 50):
        clock.now += taken
        counts.add_round(Round(0, 2, [7, 8], [4, 4], [2]), 1, SlowLogits(clock))
    decoded = counts.decoded([7, 8, 9, 8, 9], ())
    generation = decoded.generation
    assert generation.ttft_s == pytest.approx(100e-9)
    assert generation.step_gaps_s == pytest.approx((30e-9, 50e-9))
    assert generation.e2e_s == pytest.approx(180e-9)
    if record_logits:
        assert decoded.logits.shape == (5, 3)
        assert clock.now == 5 + 180 + 3 * COPY_NS
    else:
        assert decoded.logits is None
        assert clock.now == 5 + 180


def test_logits_are_copies_that_the_next_round_does_not_change():
    counts, rows = Tally(CPU, 4, (2,), record_logits=True), torch.ones(4, 3)
    counts.add_token(rows[0])
    counts.add_round(Round(0, 2, [7, 8], [4, 4], [2]), 1, rows)
    rows.zero_()
    assert torch.equal(counts.decoded([7, 8, 9], ()).logits, torch.ones(3, 3))
