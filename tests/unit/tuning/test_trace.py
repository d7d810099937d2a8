from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from adadecode.engine.generate import Request, generate
from adadecode.errors import TraceError
from adadecode.tuning.trace import Floors
from adadecode.tuning.trace_table import TRACE, read_floors, read_traces, write_traces
from tests.unit.tuning.conftest import EOS, EXITS, FLOORS, PROMPTS, trace_tiny

MADE_FROM = {"model_hash": "abc", "tokenizer_hash": "def", "space": {"exits": [1, 2, 3]}}


def test_a_trace_holds_what_vanilla_decodes_and_a_node_for_each_token_but_the_last(traced):
    for trace, prompt in zip(traced.traces, PROMPTS, strict=True):
        vanilla = generate(traced.model, Request(prompt, 24)).generation
        assert trace.output_ids == vanilla.output_token_ids
        assert len(trace.nodes) == len(trace.ngrams) == len(trace.output_ids) - 1
        assert all(len(node.proposals) == len(node.gates) == len(EXITS) for node in trace.nodes)
    assert any(trace.output_ids[-1] == EOS for trace in traced.traces)
    assert any(len(trace.output_ids) == 24 for trace in traced.traces)


def test_a_trace_follows_wrong_drafts_only_and_no_further_than_the_space_and_the_limit(traced):
    depths = set()
    for trace in traced.traces:
        for idx, path in trace.off_path:
            assert path[0] != trace.output_ids[idx + 1]
            assert EOS not in path
            assert len(path) == 1 or (idx, path[:-1]) in trace.off_path
            assert idx + len(path) <= 24 - 2
            depths.add(len(path))
    assert depths == set(range(1, traced.space.max_drafts + 1))


def test_traces_come_back_from_parquet_as_they_were(traced, tmp_path):
    path = tmp_path / "trace.parquet"
    write_traces(path, traced.traces, MADE_FROM, FLOORS)
    for found, trace in zip(read_traces(path, MADE_FROM), traced.traces, strict=True):
        # what decides comes back bit for bit; n-gram confidences are for reading and are rounded to float32
        assert replace(found, ngrams=[]) == replace(trace, ngrams=[])
        assert [n and n[0] for n in found.ngrams] == [n and n[0] for n in trace.ngrams]
    assert read_floors(path, MADE_FROM) == FLOORS
    table = pq.read_table(path)
    assert table.schema.equals(TRACE)
    assert table.num_rows == sum(len(t.output_ids) + len(t.off_path) for t in traced.traces)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("name", "value"), [("model_hash", "other"), ("tokenizer_hash", "other"), ("space", {})])
def test_a_trace_of_something_else_is_refused_by_name(eager, tmp_path, name, value):
    path = tmp_path / "trace.parquet"
    write_traces(path, eager.traces[:1], MADE_FROM, FLOORS)
    with pytest.raises(TraceError, match=f"trace.parquet: recorded with another {name}; delete it") as caught:
        list(read_traces(path, MADE_FROM | {name: value}))
    assert len(str(caught.value).splitlines()) == 1


def test_a_trace_that_is_cut_off_or_none_is_refused(eager, tmp_path):
    path = tmp_path / "trace.parquet"
    write_traces(path, eager.traces, MADE_FROM, FLOORS)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not parquet at all"):
        path.write_bytes(content)
        with pytest.raises(TraceError, match="not a readable trace; delete it to record again"):
            list(read_traces(path, MADE_FROM))
    write_traces(path, eager.traces[:1], MADE_FROM, FLOORS)
    with pytest.raises(TraceError, match="recorded with another model_hash"):
        read_floors(path, MADE_FROM | {"model_hash": "other"})


def test_a_path_is_followed_while_all_of_it_holds_with_more_than_a_floor(eager):
    """Where a floor is higher fewer paths are followed, and none that the higher floor allows is missing."""
    higher = trace_tiny("eager", torch.float32, floors=Floors((0.2, 0.3, 0.2), 0.2))
    num_fewer = 0
    for low, high in zip(eager.traces, higher.traces, strict=True):
        assert high.output_ids == low.output_ids
        assert high.off_path.items() <= low.off_path.items()
        num_fewer += len(low.off_path) - len(high.off_path)
    assert num_fewer > 20
    assert any(trace.off_path for trace in higher.traces)
