"""A trace of a worker on a CUDA device: kernels below the spans that the decode steps name, also those of graphs."""

import gzip
import json

import pytest
import torch

import adadecode
from adadecode.settings import EvalConfig

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # a library's advice about the device at hand is no failure
]


@pytest.mark.parametrize("kernels", ["graphs", "eager"])
def test_a_trace_has_the_kernels_of_both_methods_and_the_rows_are_exact(kernels, tmp_path):
    methods = ("vanilla", "adadecode")
    settings = EvalConfig(
        task="demo-math", limit=1, device="cuda", kernels=kernels, methods=methods, local=True, profile=2
    )
    result = adadecode.evaluate(settings, tmp_path / "run")
    assert (result.errors, result.num_missing) == ([], 0)
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spans = {event["name"]: event for event in events if event.get("cat") == "user_annotation"}
    kernels_at = [event["ts"] for event in events if event.get("cat") == "kernel"]
    for method in methods:
        begun, ended = spans[method]["ts"], spans[method]["ts"] + spans[method]["dur"]
        assert sum(begun <= at <= ended for at in kernels_at) > 100, (method, len(kernels_at))
    assert any(name.startswith("layers 0-") for name in spans)
    assert ("aten::_scaled_dot_product_attention_math" in {event["name"] for event in events}) is (kernels == "eager")
