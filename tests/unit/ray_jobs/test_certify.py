"""How a certification is cut for workers, how long they may take, and what a cluster has room for."""

import pytest

from adadecode.certify.prompt import lost_prompt_rows
from adadecode.errors import ResourcesError
from adadecode.records import Example, Shard
from adadecode.settings import CertifyConfig
from ray_jobs.certify import limits_of, prompt_items, split_prompts, worker_resources

SHARDS = [Shard(idx, "jsonl", (Example(f"s{idx}", "p", "p"),)) for idx in range(10)]


@pytest.mark.parametrize(
    ("num_prompts", "num_workers", "num_requests", "sizes"),
    [(10, 1, 1, [4, 4, 2]), (10, 2, 4, [5, 5]), (10, 3, 1, [3, 3, 3, 1]), (1, 4, 2, [1]), (3, 4, 2, [1, 1, 1])],
)
def test_prompts_are_cut_so_that_each_worker_has_some_and_none_has_long(num_prompts, num_workers, num_requests, sizes):
    items = prompt_items(SHARDS[:num_prompts], num_workers, num_requests)
    assert [item.size for item in items] == sizes
    assert [shard for item in items for shard in item.work] == SHARDS[:num_prompts]
    pieces = [piece for item in items for piece in split_prompts(item) or [item]]
    assert [piece.work for piece in pieces] == [[shard] for shard in SHARDS[:num_prompts]]
    assert [split_prompts(piece) for piece in pieces] == [()] * num_prompts
    assert len({item.name for item in [*items, *pieces]}) == len(items) + sum(size for size in sizes if size > 1)


def test_a_cluster_has_room_for_ten_workers_a_cpu_and_says_so():
    nodes = [{"Resources": {"CPU": 1.0}}, {"Resources": {"CPU": 2.0, "GPU": 1.0}}, {"Resources": {}}]
    assert worker_resources(30, nodes) == {"num_cpus": 0.1, "num_gpus": 0}
    with pytest.raises(ResourcesError, match=r"--workers 31: each takes 0\.1 of a CPU, .* room for 30; ask for fewer"):
        worker_resources(31, nodes)


def test_a_worker_that_waits_for_slow_servers_is_not_taken_for_one_that_hangs():
    urls = {"baseline": "http://a", "candidate": "http://b"}
    config = CertifyConfig(**urls, passes=2, retries=1, deadline_s=100.0)
    limits = limits_of(config)
    assert limits.first_deadline_s is not None
    assert limits.first_deadline_s > 4 * 2 * 2 * 2 * 100.0  # prompts one after another, sides, passes, tries
    assert limits.exclusive


def test_a_prompt_that_ended_its_workers_is_an_error_row_of_each_side_and_pass():
    rows = lost_prompt_rows(SHARDS[3], 2, "killed")
    assert [(row.method, row.repeat) for row in rows] == [
        ("candidate", 0),
        ("baseline", 0),
        ("baseline", 1),
        ("candidate", 1),
    ]
    assert {(row.status, row.error_type, row.sample_id) for row in rows} == {("error", "WorkerLost", "s3")}
    assert {row.error_message for row in rows} == {"the prompt ended every worker that asked it: killed"}
