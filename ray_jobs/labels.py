"""Labels of nodes: which nodes the workers of a run may be on, and which types of GPU they would be on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from adadecode.doctor.finding import Finding
from adadecode.settings import EvalConfig, TrainConfig, allowed_values, parsed_selector

ACCELERATOR = "ray.io/accelerator-type"  # a label that Ray gives every node with GPUs it knows

Node = dict[str, Any]  # as `ray.nodes` has it


def selector_of(config: EvalConfig | TrainConfig) -> dict[str, str] | None:
    """Ray's `label_selector` for every worker of `config`; None where any node will do."""
    return None if config.label_selector is None else parsed_selector(config.label_selector)


def selected(config: EvalConfig | TrainConfig, nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` on which workers of `config` may be."""
    return [node for node in nodes if matches(selector_of(config) or {}, node.get("Labels", {}))]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a node with `labels` is one that `selector` takes, as Ray decides it: what has no label is not a value."""
    for key, condition in selector.items():
        is_allowed, values = allowed_values(condition)
        if (labels.get(key) in values) != is_allowed:
            return False
    return True


def gpu_types(nodes: Sequence[Node]) -> Counter[str]:
    """How many of `nodes` have each type of GPU, as Ray names it; nodes whose type it does not know are left out."""
    return Counter(sorted(node["Labels"][ACCELERATOR] for node in nodes if ACCELERATOR in node.get("Labels", {})))


def _on(what: str, num_nodes: int) -> str:
    return f"{what} on {'1 node' if num_nodes == 1 else f'{num_nodes} nodes'}"


def gpu_type_findings(config: EvalConfig, able: Sequence[Node]) -> Iterator[Finding]:
    """Whether workers of `config` on the nodes that are `able` to hold one would be on GPUs of one type.

    Several will fail, unless the selector says of this label which there may be: a speed is of one machine. One worker
    mixes nothing. GPUs that Ray does not know beside a type that it does may be of that type: a warning.
    """
    types = gpu_types(able) if config.device == "cuda" else Counter[str]()
    if not types:
        return
    num_unknown = len(able) - types.total()
    told = ", ".join(_on(name, num) for name, num in types.items())
    told = f"{told}, {_on('GPUs that Ray does not know', num_unknown)}" if num_unknown else told
    if config.workers == 1:
        yield Finding.ok("GPU types", told if len(types) == 1 and not num_unknown else f"{told}; one worker mixes none")
    elif len(types) == 1 and num_unknown:
        what = f"{told}: should they be others, the table's speeds are averages over them"
        yield Finding.warning("GPU types", what, f"keep to one with --label-selector {ACCELERATOR}={next(iter(types))}")
    elif len(types) == 1:
        yield Finding.ok("GPU types", told)
    elif ACCELERATOR in (selector_of(config) or {}):
        what = f"{told}, as --label-selector says: the table's speeds are averages over them"
        yield Finding.warning("GPU types", what, f"keep to one with {ACCELERATOR}={types.most_common(1)[0][0]}")
    else:
        keep = f"--label-selector {ACCELERATOR}={types.most_common(1)[0][0]}"
        both = f"--label-selector '{ACCELERATOR}=in({','.join(types)})'"
        remedy = f"keep to one with {keep}, or mix them knowingly with {both}"
        yield Finding.fails("GPU types", f"{told}, and the speeds of one table would be averages over them", remedy)
