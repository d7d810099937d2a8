"""A run looked at before it is started, on Ray: the cluster itself, then every node that can hold a worker."""

import ipaddress
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray._private import worker

from adadecode.doctor.checks import CHECKS, examine
from adadecode.doctor.finding import Finding
from adadecode.doctor.machine import num_gpus, usable_cores
from adadecode.doctor.subject import Subject
from adadecode.errors import AdaDecodeError, ResourcesError
from adadecode.settings import EvalConfig
from ray_jobs.cluster import actor_resources, connect, is_ours, num_places, with_absolute_paths
from ray_jobs.labels import gpu_type_findings, selected
from ray_jobs.node_probe import open_token
from ray_jobs.nodes import (
    NO_TOKEN,
    Node,
    alive_nodes,
    check_nodes,
    name_of,
    nodes_for_workers,
    on,
    results,
    token_finding,
)

PATIENT_S = 60.0  # for a node that is only asked
DEEP_S = 900.0  # for a node that loads the model, once it has what a worker takes
OF_DRIVER = tuple(check for check in CHECKS if check.where == "driver")
OF_WORKER = tuple(check for check in CHECKS if check.where == "worker")


def examine_on_ray(config: EvalConfig, location: str) -> Iterator[Finding]:
    """What a run of `config` with its folder at `location` would meet on the cluster that it would join or start."""
    subject = Subject(config, location, num_workers=config.workers if isinstance(config.workers, int) else 1)
    yield from examine(subject, OF_DRIVER)
    yield from token_findings(os.environ)
    if is_ours(config.address):
        here = {"Resources": {"CPU": usable_cores(), "GPU": num_gpus()}}
        yield from own_cluster(config, here)
        yield from examine(on_own_node(subject, here), OF_WORKER)
        return
    try:
        yield from joined_cluster(subject)
    except AdaDecodeError as error:
        yield Finding.of_error("cluster", error)


def token_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether others can read the token file that Ray takes under `environment`."""
    path = open_token(environment)
    if path is not None:
        yield token_finding(path)


def own_cluster(config: EvalConfig, here: Node) -> Iterator[Finding]:
    """What the cluster that `eval` would start on this machine, `here`, holds, and whether it asks for a token."""
    yield resources_finding(config, [here], "one started on this machine, dashboard off")
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        what = "RAY_AUTH_MODE=disabled: whoever reaches the ports of the cluster started here runs code on it"
        yield Finding.warning("authentication", what, "unset it: Ray makes a token by itself")
    else:
        yield Finding.ok("authentication", "the cluster started here asks for a token")


def on_own_node(subject: Subject, here: Node) -> Subject:
    """`subject` as the workers have it that `eval` would start on this machine, `here`: their number and their threads."""
    try:
        return _of_workers(subject, subject.config, [here], here)
    except ResourcesError:  # which was said of the cluster
        return subject


def _of_workers(subject: Subject, config: EvalConfig, nodes: Sequence[Node], node: Node) -> Subject:
    """`subject` for the workers of `config` that come to `node` of the cluster's `nodes`."""
    resources, threads = actor_resources(config, nodes)
    most = num_places(resources, [node])
    num_workers = min(most, config.workers) if isinstance(config.workers, int) else most
    there = config.model_copy(update={"threads": threads})
    return Subject(there, subject.location, max(1, num_workers), subject.longest)


def joined_cluster(subject: Subject) -> Iterator[Finding]:
    """What the cluster is that a run would join, what its nodes say, and what workers would meet there."""
    config = subject.config
    connect(config.address)
    nodes = alive_nodes()
    found = resources_finding(config, nodes, f"{len(nodes)} nodes with Ray {ray.__version__}")
    yield found
    if found.status == "will fail":
        return
    yield from gpu_type_findings(config, nodes_for_workers(config, nodes))
    quick = check_nodes(config, subject.location, nodes, PATIENT_S)
    yield from quick
    is_open = any(finding.check == "authentication" and finding.status == "warning" for finding in quick)
    internals: Any = worker  # the public way is to have called `ray.init`
    yield dashboard_finding(internals.get_dashboard_url(), is_open)
    yield from merged(examine_nodes(subject, nodes))


def resources_finding(config: EvalConfig, nodes: Sequence[Node], what: str) -> Finding:
    """Whether `nodes` can hold the workers of `config`; one where none can yet is a warning with --workers auto."""
    try:
        resources, threads = actor_resources(config, nodes)
    except AdaDecodeError as error:
        return Finding.of_error("cluster", error)
    places = num_places(resources, selected(config, nodes))
    needs = ", ".join(f"{amount:g} {name.removeprefix('num_')}" for name, amount in resources.items())
    found = f"{what}: room for {places} workers of {needs} and {threads} threads"
    if not places:
        return Finding.warning("cluster", found, "the run would wait for a node that has what a worker takes")
    return Finding.ok("cluster", found)


def dashboard_finding(address: str | None, is_open: bool) -> Finding:
    """Whether the dashboard, through which jobs are submitted, is reached from other machines; `is_open`: by anybody."""
    if not address:
        return Finding.ok("dashboard", "it is off")
    host = address.removeprefix("http://").rpartition(":")[0]
    if is_loopback(host):
        return Finding.ok("dashboard", f"{address}, on loopback")
    if is_open:
        what = f"{address} is reached from other machines and asks for no token: whoever does runs code on the cluster"
        return Finding.warning("dashboard", what, f"ray start --head --dashboard-host=127.0.0.1; or {NO_TOKEN}")
    return Finding.ok("dashboard", f"{address}, beyond loopback, and it asks for the token")


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def examine_nodes(subject: Subject, nodes: Sequence[Node]) -> dict[str, list[Finding]]:
    """What a worker would meet, by node: a task on each, with what a worker takes, looks as `examine` does."""
    config = with_absolute_paths(subject.config)
    resources, threads = actor_resources(config, nodes)
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
    options: dict[str, Any] = {"max_retries": 0, "max_calls": 1, "runtime_env": environment, **resources}
    remote = ray.remote(**options)(look_here)
    asked = {}
    for node in nodes_for_workers(config, nodes):
        ref = remote.options(scheduling_strategy=on(node)).remote(_of_workers(subject, config, nodes, node))
        asked[ref] = name_of(node)
    silent = "end what else takes its CPUs or GPUs, or look at Ray's logs there"
    return {
        node: [Finding.warning("worker", problem, silent)] if found is None else found
        for node, found, problem in results(asked, DEEP_S)
    }


def look_here(subject: Subject) -> list[Finding]:
    """What a worker would meet in this process."""
    return list(examine(subject, OF_WORKER))


def merged(of_nodes: Mapping[str, list[Finding]]) -> Iterator[Finding]:
    """The findings of all nodes, check after check: what is ok once for all that say so, else once for each text."""
    first: dict[tuple[str, str, int | str], Finding] = {}
    places: dict[tuple[str, str, int | str], dict[str, None]] = {}
    for node, findings in of_nodes.items():
        num_ok = Counter[str]()
        for finding in findings:
            is_ok = finding.status == "ok"
            key = (finding.check, finding.status, num_ok[finding.check] if is_ok else finding.found)
            num_ok[finding.check] += is_ok
            first.setdefault(key, finding)
            places.setdefault(key, {})[node] = None
    order = {check.name: idx for idx, check in enumerate(CHECKS)}
    for key in sorted(first, key=lambda key: order.get(key[0], len(order))):
        nodes = list(places[key])
        yield first[key].at(nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes")
