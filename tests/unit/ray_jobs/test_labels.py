"""Which nodes a selector of labels takes, and runs whose GPUs would be of several types."""

import re

import pytest

from adadecode.errors import ResourcesError
from adadecode.settings import EvalConfig, parsed_selector
from ray_jobs.cluster import actor_resources, num_places
from ray_jobs.doctor import resources_finding
from ray_jobs.labels import ACCELERATOR, gpu_type_findings, matches, selected, selector_of
from ray_jobs.nodes import nodes_for_workers


def node(gpu: str | None, num_gpus: int = 1, **labels: str) -> dict:
    known = {} if gpu is None else {ACCELERATOR: gpu}
    return {"Resources": {"CPU": 4.0, "GPU": float(num_gpus)}, "Labels": labels | known}


A100, H100, UNKNOWN = node("A100", 2, zone="a"), node("H100", 8, zone="b"), node(None, 4)
NODES = [A100, H100, H100, UNKNOWN]


def config(selector: str | None = None, **settings: object) -> EvalConfig:
    return EvalConfig(**{"device": "cuda", "address": "head:6379", "label_selector": selector, **settings})


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        (f"{ACCELERATOR}=H100", {ACCELERATOR: "H100"}),
        ("zone=a,market=!spot", {"zone": "a", "market": "!spot"}),
        (f"{ACCELERATOR}=in(A100, H100) , zone=!in(b)", {ACCELERATOR: "in(A100,H100)", "zone": "!in(b)"}),
    ],
)
def test_a_selector_is_what_ray_takes(selector, found):
    assert parsed_selector(selector) == found
    assert selector_of(config(selector)) == found


@pytest.mark.parametrize(
    "selector", ["H100", "zone=", "=a", "zone=a=b", "zone=a,", "zone=in()", "zone=in(a", "z one=a", "zone=a,zone=b"]
)
def test_what_is_no_selector_is_one_line(selector, cli, tmp_path):
    result = cli("eval", "--label-selector", selector, "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(
        r"--label-selector .*: .*give KEY=VALUE, several with commas, such as ray.io/accelerator-type=H100", line
    )


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        (None, NODES),
        (f"{ACCELERATOR}=H100", [H100, H100]),
        (f"{ACCELERATOR}=in(A100,H100)", [A100, H100, H100]),
        (f"{ACCELERATOR}=!H100", [A100, UNKNOWN]),
        (f"{ACCELERATOR}=!in(A100,H100)", [UNKNOWN]),
        (f"{ACCELERATOR}=H100,zone=a", []),
        ("zone=a", [A100]),
    ],
)
def test_places_are_those_of_the_nodes_that_a_selector_takes(selector, taken):
    settings = config(selector, workers="auto")
    assert selected(settings, NODES) == taken
    resources, _ = actor_resources(settings, NODES)
    assert num_places(resources, selected(settings, NODES)) == sum(min(4, n["Resources"]["GPU"]) for n in taken)
    assert nodes_for_workers(settings, NODES) == taken
    assert resources_finding(settings, NODES, "4 nodes").status == ("ok" if taken else "warning")


def test_more_workers_than_the_taken_nodes_hold_are_one_line():
    with pytest.raises(
        ResourcesError, match=r"--workers 3: nodes with zone=a have 4 CPUs and 2 GPUs, one GPU each; ask"
    ):
        actor_resources(config("zone=a", workers=3), NODES)


def test_a_cluster_of_ones_own_has_nothing_to_choose(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ResourcesError, match=r"--label-selector zone=a: the cluster that is started on this machine has"
    ):
        actor_resources(config("zone=a", address=None), NODES)


def test_a_label_that_a_node_lacks_is_no_value():
    assert not matches({"zone": "a"}, {})
    assert matches({"zone": "!a"}, {})


@pytest.mark.parametrize(
    ("settings", "nodes", "line"),
    [
        (config(workers=2), [H100, H100], "ok         GPU types: H100 on 2 nodes"),
        (
            config(workers=2),
            [H100, H100, UNKNOWN],
            "warning    GPU types: H100 on 2 nodes, GPUs that Ray does not know on 1 node: should they be others, the "
            "table's speeds are averages over them: keep to one with --label-selector ray.io/accelerator-type=H100",
        ),
        (
            config(workers=1),
            NODES,
            "ok         GPU types: A100 on 1 node, H100 on 2 nodes, GPUs that Ray does not know on 1 node; one worker "
            "mixes none",
        ),
        (
            config(workers=2),
            NODES,
            "will fail  GPU types: A100 on 1 node, H100 on 2 nodes, GPUs that Ray does not know on 1 node, and the "
            "speeds of one table would be averages over them: keep to one with --label-selector "
            "ray.io/accelerator-type=H100, or mix them knowingly with --label-selector 'ray.io/accelerator-type=in(A100,H100)'",
        ),
        (config(f"{ACCELERATOR}=A100", workers=2), NODES, "ok         GPU types: A100 on 1 node"),
        (
            config(f"{ACCELERATOR}=in(A100,H100)", workers="auto"),
            NODES,
            "warning    GPU types: A100 on 1 node, H100 on 2 nodes, as --label-selector says: the table's speeds are "
            "averages over them: keep to one with ray.io/accelerator-type=H100",
        ),
    ],
)
def test_gpus_of_several_types_are_refused_unless_they_are_asked_for(settings, nodes, line):
    (found,) = gpu_type_findings(settings, nodes_for_workers(settings, nodes))
    assert found.line() == line


def test_types_of_gpus_that_compute_nothing_do_not_matter():
    assert list(gpu_type_findings(config(device="cpu"), NODES)) == []
    assert list(gpu_type_findings(config(), [UNKNOWN])) == []
