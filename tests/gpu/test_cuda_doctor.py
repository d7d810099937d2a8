"""What `doctor` says of a CUDA device, and that the memory it tells is enough for what it then does."""

import pytest
import torch

from adadecode.doctor import loaded
from adadecode.doctor.checks import examine
from adadecode.doctor.memory import CUDA_BYTES, needed
from adadecode.doctor.subject import Subject
from adadecode.kernels.graphed import GraphedStep
from adadecode.settings import EvalConfig

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]

CONFIG = EvalConfig(task="demo-math", limit=2, device="cuda", local=True)


def test_a_gpu_that_will_do_is_ok_in_every_line_within_the_memory_that_was_told(tmp_path):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    subject = Subject(CONFIG, str(tmp_path / "run"))
    found = list(examine(subject))
    assert [finding.line() for finding in found if finding.status != "ok"] == []
    assert {"gpus", "GPU memory", "graphs", "ties", "methods"} <= {finding.check for finding in found}
    assert torch.cuda.max_memory_reserved() - before <= sum(needed(subject).values())
    assert needed(subject)["graphs and CUDA itself"] == CUDA_BYTES


def test_graphs_that_cannot_be_captured_are_one_line(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(loaded, "one_round", broken)
    found = list(examine(Subject(CONFIG, str(tmp_path / "run"))))
    (line,) = [finding.line() for finding in found if finding.status == "will fail"]
    assert line.startswith("will fail  graphs: RuntimeError: CUDA error: operation not permitted")
    assert [finding.check for finding in found if finding.status == "not tried"] == ["methods"]


def test_graphs_without_which_auto_decodes_are_a_warning_and_the_rest_is_looked_at(tmp_path, monkeypatch):
    segment = GraphedStep.segment

    def refusing(step: GraphedStep, start: int, stop: int) -> None:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # no capture allows that
        segment(step, start, stop)

    monkeypatch.setattr(GraphedStep, "segment", refusing)
    found = list(examine(Subject(CONFIG, str(tmp_path / "run"))))
    (line,) = [finding.line() for finding in found if finding.status != "ok"]
    assert line.startswith("warning    kernels: eager, because CUDA graphs fail here (")
    assert "graphs" not in {finding.check for finding in found}, "there are none"
    assert "methods" in {finding.check for finding in found}
