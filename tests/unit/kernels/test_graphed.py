"""What needs no device to be shown of graphs: how a capture fails, and when workspaces are freed.

torch.cuda is replaced by fakes that fail as it does; tests/gpu runs the real thing.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch

from adadecode.evaluation.failures import Failure, result_or_failure
from adadecode.kernels import graphed
from adadecode.kernels.graphed import capture, capture_stream, free_workspaces, why_no_graphs
from tests.models import tiny_model


class FakeDevice:
    """The current stream and the captures of a device; `ending` is what torch raises where a spoiled capture ends."""

    def __init__(self) -> None:
        self.current = "outer"
        self.captured_on: list[object] = []
        self.num_streams = 0
        self.ending: BaseException | None = None

    def new_stream(self) -> str:
        self.num_streams += 1
        return f"side {self.num_streams}"

    def set_stream(self, stream: str) -> None:
        self.current = stream

    @contextlib.contextmanager
    def graph(self, graph: object, pool: object, stream: str) -> Generator[None]:
        """As torch 2.13 has it: where the capture cannot be ended, the stream stays the current one."""
        before, self.current = self.current, stream
        self.captured_on.append(stream)
        try:
            yield
        finally:
            if self.ending is not None:
                raise self.ending
            self.current = before


@pytest.fixture
def device(monkeypatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    capture_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda self: None})())
    monkeypatch.setattr(torch.cuda, "Stream", fake.new_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: fake.current)
    monkeypatch.setattr(torch.cuda, "set_stream", fake.set_stream)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    yield fake
    capture_stream.cache_clear()


def failing(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


def test_memory_that_runs_out_in_a_capture_is_not_hidden_by_the_capture_that_cannot_end(device):
    device.ending = torch.AcceleratorError("operation failed due to a previous error during capture")
    with pytest.raises(torch.OutOfMemoryError, match="20 MiB") as caught:
        capture(failing(torch.OutOfMemoryError("tried to allocate 20 MiB")), pool=(0, 1), device_idx=0)
    assert device.current == "outer"
    assert caught.value.__suppress_context__, "a log shows the first error alone"


def test_a_sample_whose_capture_finds_no_memory_is_tried_again_and_the_device_is_not_lost(device, caplog):
    device.ending = torch.AcceleratorError("operation failed due to a previous error during capture")
    model = tiny_model(num_layers=1)
    call = failing(torch.OutOfMemoryError("tried to allocate 20 MiB"))
    failure = result_or_failure("a sample", lambda: capture(call, pool=(0, 1), device_idx=0), model)
    assert isinstance(failure, Failure)
    assert (failure.error_type, failure.is_out_of_memory) == ("OutOfMemoryError", True)
    assert len(device.captured_on) == 2
    assert "trying once more" in caplog.text


def test_a_capture_that_only_fails_to_end_says_so(device):
    device.ending = torch.AcceleratorError("unspecified launch failure")
    with pytest.raises(torch.AcceleratorError, match="launch failure"):
        capture(lambda: None, pool=(0, 1), device_idx=0)
    assert device.current == "outer"


def test_all_captures_are_on_one_stream(device):
    for _ in range(3):
        capture(lambda: None, pool=(0, 1), device_idx=0)
    assert device.captured_on == ["side 1"] * 3
    assert device.num_streams == 1
    assert device.current == "outer"


def test_workspaces_are_freed_when_no_graph_is_left_that_uses_them(monkeypatch):
    class Step:
        pass

    freed: list[str] = []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: freed.append("all"), raising=False)
    step = Step()
    graphed._alive.add(step)
    free_workspaces()
    assert freed == []
    del step
    free_workspaces()
    assert freed == ["all"]


class OneCall:
    """Stands in for a step; `run` raises `error`, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.calls = error, list[str]()

    def begin(self, first_position: int) -> None:
        self.calls.append("begin")

    def put(self, slot: int, token_ids: list[int]) -> None:
        self.calls.append("put")

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        self.calls.append("run")
        if self.error is not None:
            raise self.error

    def verify(self, lo: int, hi: int) -> None:
        self.calls.append("verify")


def test_graphs_are_tried_on_a_layer_and_the_head_and_what_fails_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    step: Any = OneCall()
    assert why_no_graphs(lambda: step) is None
    assert step.calls == ["begin", "put", "run", "verify"]
    step = OneCall(RuntimeError("operation not permitted\nwhen capturing"))
    assert why_no_graphs(lambda: step) == "operation not permitted when capturing"


def test_what_is_no_fault_of_graphs_is_raised(monkeypatch):
    step: Any = OneCall(torch.OutOfMemoryError("tried to allocate 20 MiB"))
    with pytest.raises(torch.OutOfMemoryError):
        why_no_graphs(lambda: step)
    monkeypatch.setattr(torch.cuda, "synchronize", failing(torch.AcceleratorError("an illegal memory access")))
    step = OneCall(torch.AcceleratorError("an illegal memory access"))
    with pytest.raises(torch.AcceleratorError, match="illegal"):
        why_no_graphs(lambda: step)
