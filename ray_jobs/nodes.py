"""The nodes of a cluster, asked before a run whether they see its folder, have its versions, and tell the same time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adadecode.doctor.finding import Finding
from adadecode.doctor.run_folder import NOT_SHARED, is_answered, left_at, new_name
from adadecode.errors import AdaDecodeError, ResourcesError, UsageError
from adadecode.printable import on_one_line
from adadecode.records import Say
from adadecode.runs.run import PreparedRun
from adadecode.runs.storage import absolute
from adadecode.settings import EvalConfig
from ray_jobs.cluster import actor_resources, is_ours, num_places
from ray_jobs.labels import gpu_type_findings, gpu_types, selected
from ray_jobs.node_probe import NodeFacts, node_facts, probe

Node = dict[str, Any]  # as `ray.nodes` has it

QUICK_S = 20.0  # for a node that is only asked: it may have to start a process first
LATE = "no answer in"  # how the problem begins of a node that may yet do
MOST_SKEW_S = 2.0
SAME_EVERYWHERE = "install the same versions on every node, or submit with --working-dir"
NO_TOKEN = "start Ray with RAY_AUTH_MODE=token and one secret RAY_AUTH_TOKEN for all nodes, and keep its ports private"


@dataclass(frozen=True)
class Answer:
    """What a node answered: its facts, or why there are none. Times are by the driver's clock."""

    node: str
    facts: NodeFacts | None
    problem: str = ""
    is_shared: bool = False  # the driver found the file that the node left
    sent_at: float = 0.0
    received_at: float = 0.0

    def skew_s(self) -> float:
        """Seconds by which the node's clock is surely ahead, or behind where below 0."""
        assert self.facts is not None, self
        clock = self.facts.clock
        return clock - self.received_at if clock > self.received_at else min(0.0, clock - self.sent_at)


def check_before_run(prepared: PreparedRun, say: Say) -> None:
    """The quick part, before a run on a cluster that was joined; says warnings and raises UsageError for what will fail.

    The driver's own node is not asked, and so none is of a cluster that this process started.
    """
    if is_ours(prepared.config.address):
        return
    here, config, nodes = ray.get_runtime_context().get_node_id(), prepared.config, alive_nodes()
    findings = list(gpu_type_findings(config, nodes_for_workers(config, nodes)))
    if all(finding.status != "will fail" for finding in findings):
        findings += check_nodes(config, absolute(prepared.folder.location), nodes, QUICK_S, trusted=here)
    problems = [f"{finding.check}: {finding.text()}" for finding in findings if finding.status == "will fail"]
    for finding in findings:
        if finding.status == "warning" and finding.check not in ("authentication", "token file"):
            say(finding.line())
    if problems:
        raise UsageError("; ".join(problems))


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that was joined."""
    return [node for node in ray.nodes() if node["Alive"]]


def nodes_for_workers(config: EvalConfig, nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` that can hold a worker of `config`; none where the cluster cannot hold the run."""
    try:
        resources, _ = actor_resources(config, nodes)
    except ResourcesError:
        return []
    return [node for node in selected(config, nodes) if num_places(resources, [node])]


def check_nodes(
    config: EvalConfig, location: str, nodes: Sequence[Node], timeout_s: float, trusted: str | None = None
) -> list[Finding]:
    """What the nodes that can hold a worker say of the run folder at `location`, of versions and of the time.

    The one whose id is `trusted` is not asked, and counts as one that is as it should be.
    """
    able = nodes_for_workers(config, nodes)
    asked = [node for node in able if node["NodeID"] != trusted]
    if not asked:
        return []
    with left_at(location) as left:
        answers = ask_nodes(asked, location, left, timeout_s)
    here, num_trusted = node_facts(), len(able) - len(asked)
    findings = list(node_findings(here, answers, location, num_trusted))
    if config.device == "cuda" and config.workers != 1 and len(gpu_types(able)) < 2:
        gpus = {answer.node: answer.facts.gpus for answer in answers if answer.facts is not None}
        findings += gpu_name_findings(gpus | ({"this node": here.gpus} if num_trusted else {}))
    return findings


def ask_nodes(nodes: Sequence[Node], location: str, left: str, timeout_s: float) -> list[Answer]:
    """The answers of `nodes` about the file `left` at `location`; of one that gives none in `timeout_s`, that."""
    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    names = {name_of(node): new_name() for node in nodes}
    sent_at = time.time()
    asked = {
        remote.options(scheduling_strategy=on(node)).remote(location, left, names[name_of(node)]): name_of(node)
        for node in nodes
    }
    answers = [
        Answer(node, facts, problem, sent_at=sent_at, received_at=time.time())
        for node, facts, problem in results(asked, timeout_s)
    ]
    return [_found(answer, location, names[answer.node]) for answer in answers]


def results(asked: Mapping[Any, str], timeout_s: float) -> Iterator[tuple[str, Any, str]]:
    """For each node its result, None with the problem where it raised or did not answer in `timeout_s`, as they come."""
    waiting, deadline = list(asked), time.monotonic() + timeout_s
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        try:
            yield asked[ready[0]], ray.get(ready[0]), ""
        except RayTaskError as error:
            yield asked[ready[0]], None, on_one_line(str(error).strip().splitlines()[-1])
        except RayError as error:
            yield asked[ready[0]], None, on_one_line(error)
    for ref in waiting:
        ray.cancel(ref, force=True)
        yield asked[ref], None, f"{LATE} {timeout_s:.0f} s"


def _found(answer: Answer, location: str, name: str) -> Answer:
    """`answer`, and whether the driver finds the file `name` that the node left."""
    if answer.facts is None or answer.facts.folder is not None:
        return answer
    try:
        is_shared = is_answered(location, name)
    except AdaDecodeError as error:
        return Answer(answer.node, None, str(error))
    return Answer(
        answer.node, answer.facts, is_shared=is_shared, sent_at=answer.sent_at, received_at=answer.received_at
    )


def name_of(node: Node) -> str:
    """How a node is named in a line: its host and address, which differ where several are on one host."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"


def on(node: Node) -> NodeAffinitySchedulingStrategy:
    """Has Ray run something on `node` and nowhere else."""
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def node_findings(
    driver: NodeFacts, answers: Sequence[Answer], location: str, num_trusted: int = 0
) -> Iterator[Finding]:
    """What the nodes' `answers` mean to a run whose driver has the facts `driver` and its folder at `location`.

    `num_trusted` more were not asked, and can do the work.
    """
    silent = {answer.node: answer.problem for answer in answers if answer.facts is None}
    late = {node: problem for node, problem in silent.items() if problem.startswith(LATE)}
    yield from _late_findings(late)
    refused = {node: problem for node, problem in silent.items() if node not in late}
    told = {answer.node: answer for answer in answers if answer.facts is not None}
    unshared = {node: problem for node, answer in told.items() if (problem := _folder_problem(answer, location))}
    has_others = num_trusted + len(answers) > len(refused) + len(unshared)
    yield from _by_reason("nodes", refused, has_others, "no worker starts there: mend that node, or leave it out")
    yield from _by_reason("run folder", unshared, has_others, NOT_SHARED)
    if told and not unshared:
        yield Finding.ok("run folder", f"{location} is written by {_num(told)} and read here")
    facts = {node: answer.facts for node, answer in told.items() if answer.facts is not None}
    yield from _version_findings(driver, facts)
    yield from _clock_findings(told)
    yield from _token_findings(facts)


def _late_findings(late: Mapping[str, str]) -> Iterator[Finding]:
    """A node that says nothing in time is no failure: Ray may only be slow to start a process there."""
    for problem in dict.fromkeys(late.values()):
        where = _listed([node for node, found in late.items() if found == problem])
        yield Finding.warning(
            "nodes", f"{where}: {problem}", "it is slow or starts no worker: look at Ray's logs there"
        )


def _folder_problem(answer: Answer, location: str) -> str | None:
    assert answer.facts is not None, answer
    if answer.facts.folder is not None:
        return answer.facts.folder
    return None if answer.is_shared else f"what is written to {location} there is not found here"


def _by_reason(check: str, problems: Mapping[str, str], has_others: bool, remedy: str) -> Iterator[Finding]:
    """A finding for each kind of problem: a run will fail unless it `has_others`, nodes that do its work."""
    for problem in dict.fromkeys(problems.values()):
        where = _listed([node for node, found in problems.items() if found == problem])
        if has_others:
            yield Finding.warning(check, f"{where}: {problem}; the other nodes do the work", remedy)
        else:
            yield Finding.fails(check, f"{where}: {problem}", remedy)


def _version_findings(driver: NodeFacts, facts: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Where nodes have other versions than the driver: of Ray or of what decodes no run is of one piece."""
    severe: dict[str, Callable[[str, str, str], Finding]] = {
        "ray": Finding.fails,
        "code": Finding.fails,
        "python": Finding.warning,
        "torch": Finding.warning,
    }
    names = {"ray": "Ray", "code": "the code of adadecode", "python": "Python", "torch": "torch"}
    is_mixed = False
    for field, finding in severe.items():
        here = getattr(driver, field)
        others = {node: there for node, told in facts.items() if (there := getattr(told, field)) != here}
        for other in dict.fromkeys(others.values()):
            is_mixed = True
            where = _listed([node for node, found in others.items() if found == other])
            yield finding("versions", f"{names[field]} is {other} on {where} and {here} here", SAME_EVERYWHERE)
    if facts and not is_mixed:
        yield Finding.ok("versions", f"Ray {driver.ray}, Python {driver.python}, torch {driver.torch} on {_num(facts)}")


def gpu_name_findings(gpus: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Whether nodes have `gpus` of several names where Ray's label tells one, as of an H100 with SXM and with PCIe."""
    names = sorted({name for of_node in gpus.values() for name in of_node})
    if len(names) > 1:
        told = "; ".join(f"{name} on {_listed([node for node in gpus if name in gpus[node]])}" for name in names)
        what = f"{told}, and the speeds of one table would be averages over them"
        yield Finding.warning("GPU types", what, "label the nodes (ray start --labels) and give --label-selector")


def _clock_findings(told: Mapping[str, Answer]) -> Iterator[Finding]:
    skewed = {node: skew for node, answer in told.items() if abs(skew := answer.skew_s()) > MOST_SKEW_S}
    for node, skew in skewed.items():
        off = f"the clock of {node} is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        yield Finding.warning("clocks", f"{off}, and the times in tables with it", "set it by NTP (chrony)")
    if told and not skewed:
        yield Finding.ok("clocks", f"{_num(told)} within {MOST_SKEW_S:.0f} s of this one")


def _token_findings(facts: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Nodes that ask for no token, and token files that others can read there."""
    without = [node for node, told in facts.items() if not told.asks_for_token]
    if without:
        what = f"{_listed(without)}: no token is asked for, and whoever reaches the ports of Ray runs code there"
        yield Finding.warning("authentication", what, NO_TOKEN)
    elif facts:
        yield Finding.ok("authentication", f"{_num(facts)} asked for a token")
    for path in dict.fromkeys(told.open_token for told in facts.values()):
        if path is not None:
            yield token_finding(path, _listed([node for node, told in facts.items() if told.open_token == path]))


def token_finding(path: str, where: str = "this machine") -> Finding:
    """The warning about the token file at `path`, which others can read."""
    what = f"on {where} others can read {path}, and whoever has the token runs code on the cluster"
    return Finding.warning("token file", what, f"chmod 600 {path}")


def _listed(nodes: Sequence[str]) -> str:
    """The names of `nodes`, or of the first few and how many more there are."""
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"{', '.join(nodes[:3])}{more}"


def _num(nodes: Mapping[str, object]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
