"""What a tuned policy is measured against on held-out prompts: both vanillas and the paper's policy."""

from dataclasses import dataclass, field

from adadecode.engine.policy import VANILLA, Policy, make_policy, paper_exits
from adadecode.methods import METHODS, baselines
from adadecode.model.exit_heads import ExitHeads
from adadecode.settings import DecodeSettings
from adadecode.tuning.replay import Candidate
from adadecode.tuning.result import TUNED
from adadecode.tuning.subject import TuneSubject


@dataclass(frozen=True)
class Contender:
    """A policy under the name it is measured by; `heads` per task, none for vanilla. `width` is W or 1."""

    name: str
    policy: Policy
    width: int
    heads: dict[str, ExitHeads] = field(default_factory=dict)
    candidate: Candidate | None = None  # what a replay of it takes; None when the trace does not cover it


def papers_policy(subject: TuneSubject) -> Policy | None:
    """The paper's default policy (section 4); None where the heads lack one of its exits."""
    exits = paper_exits(subject.model.num_layers)
    if not exits or any(not set(exits) <= set(of_task.exits) for of_task in subject.heads.values()):
        return None
    return make_policy(DecodeSettings(), exits, subject.model.num_layers)


def contenders_of(subject: TuneSubject, best: Candidate, paper: Policy | None) -> list[Contender]:
    """What is measured: both vanillas, the paper's policy with full heads and with the traced ones, and the tuned one."""
    width = subject.space.width
    contenders = [Contender(name, VANILLA, METHODS[name].step_width(width) or width) for name in baselines()]
    if paper is not None and subject.head != "full" and subject.full_heads is not None:
        contenders.append(Contender("paper", paper, width, subject.full_heads))
    space = subject.space
    if paper is not None and set(paper.exits) <= set(space.exits) and paper.max_drafts <= space.max_drafts:
        name = "paper" if subject.head == "full" else f"paper, {subject.head}"
        traced = Candidate(paper) if space.covers(paper) else None
        contenders.append(Contender(name, paper, width, subject.heads, traced))
    return [*contenders, Contender(TUNED, best.policy, width, gated_heads(subject.heads, best.gate), best)]


def gated_heads(heads: dict[str, ExitHeads], gate: float) -> dict[str, ExitHeads]:
    """`heads` by task, their tests skipped where a gate gives less than `gate`."""
    return {task: of_task.with_gate(gate) for task, of_task in heads.items()}
