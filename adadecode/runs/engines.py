"""Which engines computed a run's shards: what a table cannot hold two of, and what it may, told beside it.

A fact that a whole version does not store is compared among the commits of the others; one that some commits of a version
lack is a value too.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adadecode.report.foreign import foreign_text
from adadecode.report.schema import LOST_BY

Commits = Mapping[int, dict[str, Any]]
Facts = dict[str, Any]  # of a worker
Engine = tuple[str, ...]  # the values of the facts of speed

# Facts that decide which tokens come out or which rounds a method takes: with two of one, the rows are of two experiments.
DECISIVE = {
    "model_hash": "weights",
    "draft_model_hash": "weights of the draft model",
    "medusa_heads_hash": "Medusa heads",
    "dtype": "dtypes",
    "chat_template_hash": "chat templates",
    "width": "widths",
    "exits": "exits",
    "draft_exits": "exits of methods",
    "heads_hash": "heads",
    "code_hash": "code of engine, kernels or model",
}
# Facts that decide how fast tokens come: with two of one, speeds are averages over both. Their names in a line.
OF_SPEED = {
    "kernels": "kernels",
    "cpu": "processor",
    "gpu": "GPU",
    "gpu_driver": "driver",
    "cuda": "CUDA",
    "threads": "threads",
    "attention": "attention",
    "float32_precision": "float32 precision",
    "reduced_precision_sums": "reduced-precision sums",
    "torch": "torch",
    "python": "Python",
}
MISSING = "not stored"
MAX_SHOWN = 4  # engines that have a line


def worker_facts(commits: Commits) -> list[Facts]:
    """The facts of the workers that made `commits`, equal ones once.

    Not by process: in containers two of them often have one host and one number.
    """
    shared = {
        id(commit["worker"]): commit for commit in commits.values()
    }  # as commits are read, equal facts are one object
    found = [facts for commit in shared.values() for facts in _of_commit(commit)]
    return list({json.dumps(facts, sort_keys=True): facts for facts in found}.values())


def mixed_experiments(commits: Commits) -> list[str]:
    """A line for each decisive fact of which `commits` have several; none for a run of one experiment."""
    decoding = _that_decoded(worker_facts(commits))
    lines = []
    for fact, what in DECISIVE.items():
        values = _values(decoding, fact)
        if len(values) > 1:
            lines.append(f"shards were computed with different {what}: {', '.join(values)}")
    return lines


def num_engines(commits: Commits) -> dict[str, int]:
    """How many engines computed the rows of each task; a task whose every sample was lost has 0."""
    known = _known(commits)
    engines: dict[str, set[Engine]] = {}
    for commit in commits.values():
        of_task = engines.setdefault(commit.get("task", ""), set())
        of_task |= {_engine(facts, known) for facts in _that_decoded(_of_commit(commit))}
    return {task: len(of_task) for task, of_task in engines.items()}


def engine_lines(commits: Commits) -> list[str]:
    """What computed the rows: a line per engine, the busiest first, and one that says what is mixed."""
    known = _known(commits)
    examples: dict[Engine, Facts] = {}
    num_shards = Counter[Engine]()
    for commit in commits.values():
        for facts in _that_decoded(_of_commit(commit)):
            examples.setdefault(_engine(facts, known), facts)
            num_shards[_engine(facts, known)] += 1
    if len(examples) < 2:
        return [f"engine: {_described(facts)}" for facts in examples.values()] + _revision_lines(commits)
    shown = [
        f"engine of {count} of {len(commits)} shards: {_described(examples[engine])}"
        for engine, count in num_shards.most_common(MAX_SHOWN)
    ]
    if len(examples) > MAX_SHOWN:
        shown.append(f"and {len(examples) - MAX_SHOWN} more engines, see the workers in run.json")
    mixed = {OF_SPEED[fact]: values for fact in known if len(values := _values(examples.values(), fact)) > 1}
    told = "; ".join(f"{what} {', '.join(values)}" for what, values in mixed.items())
    return [
        *shown,
        f"{len(examples)} engines are mixed, so speeds are averages over them: {told}",
        *_revision_lines(commits),
    ]


def published_engine_lines(run: Mapping[str, Any]) -> list[str]:
    """The same from run.json alone, of a run whose commits are not there: one line for each engine."""
    return list(dict.fromkeys(f"engine: {_described(facts)}" for facts in stored_facts(run)))


def stored_facts(run: Mapping[str, Any]) -> list[Facts]:
    """What a run.json of any content says of the workers that decoded."""
    return _that_decoded(_dicts(run.get("workers")))


def changed_code_notes(commits: Commits, code: str, revision: str | None) -> list[str]:
    """What to say before more shards are computed by `code` of `revision`: a line when `commits` are of other code."""
    decoding = _that_decoded(worker_facts(commits))
    before = [value for value in _values(decoding, "code_hash") if value != code]
    remedy = "for a table of one experiment choose another --out, or install what computed the others"
    if before:
        return [
            f"the code of engine, kernels or model has changed: committed shards are of {', '.join(before)}, those to come "
            f"of {code}; a table with both counts as a disagreement (exit code 3): {remedy}"
        ]
    silent = [facts for facts in decoding if "code_hash" not in facts]
    others = [value for value in _values(silent, "git_sha") if value != revision]
    if others and revision is not None:
        return [
            f"committed shards are of revision {_short(others)}, those to come of {_short([revision])}; whether the code "
            f"that decodes has changed, they do not say: {remedy}"
        ]
    return []


def _of_commit(commit: dict[str, Any]) -> list[Facts]:
    """The facts of every worker that made rows of the shard: several when it was done sample by sample."""
    facts = dict(commit["worker"])
    return [*_dicts(facts.pop("others", None)), facts]


def _dicts(workers: Any) -> list[Facts]:
    """What of `workers` is facts of one; none where that is no list."""
    return [facts for facts in workers if isinstance(facts, dict)] if isinstance(workers, list) else []


def _that_decoded(workers: Iterable[Facts]) -> list[Facts]:
    """`workers` less the driver, which commits a sample that nobody survived."""
    return [facts for facts in workers if facts.get("worker_id") != LOST_BY]


def _known(commits: Commits) -> list[str]:
    """The facts of speed that the workers of every version have."""
    decoding = _that_decoded(worker_facts(commits))
    return [fact for fact in OF_SPEED if len(_that_tell(decoding, fact)) == len(decoding)]


def _that_tell(workers: Iterable[Facts], fact: str) -> list[Facts]:
    """The workers that have `fact`, and those that lack it though others of their version have it."""
    workers = list(workers)
    versions = [facts["adadecode"] for facts in workers if fact in facts and "adadecode" in facts]
    return [facts for facts in workers if fact in facts or facts.get("adadecode") in versions]


def _engine(facts: Facts, known: Sequence[str]) -> Engine:
    return tuple(_text(facts.get(fact, MISSING)) for fact in known)


def _values(workers: Iterable[Facts], fact: str) -> list[str]:
    """The different values of `fact` among the workers whose version stores it, as text, sorted."""
    return sorted({_text(facts.get(fact, MISSING)) for facts in _that_tell(workers, fact)})


def _text(value: Any) -> str:
    """A value as a line has it; `{"demo-math": [4, 10]}` as `demo-math 4-10`."""
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(part)}" for name, part in sorted(value.items()))
    return "-".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _described(facts: Facts) -> str:
    """`native kernels, bfloat16, AMD EPYC, 2 threads, torch 2.13.0, Python 3.11.7`; what is not known is left out."""
    gpu = [f"{facts['gpu']} (driver {facts.get('gpu_driver')}, CUDA {facts.get('cuda')})"] if facts.get("gpu") else []
    form = {"kernels": "{} kernels", "dtype": "{}", "cpu": "{}"}
    form |= {"threads": "{} thread" if facts.get("threads") == 1 else "{} threads"}
    form |= {"torch": "torch {}", "python": "Python {}", "sampling": "{}"}
    told = [(fact, text.format(facts[fact])) for fact, text in form.items() if facts.get(fact) is not None]
    foreign = [text] if (text := foreign_text(facts)) is not None else []
    return ", ".join([text for fact, text in told if not (gpu and fact == "cpu")] + gpu + foreign)


def _revision_lines(commits: Commits) -> list[str]:
    """A line when shards are of several revisions and some do not say whether that changed the code that decodes."""
    decoding = _that_decoded(worker_facts(commits))
    revisions = [value for value in _values(decoding, "git_sha") if value != "none"]
    if len(revisions) < 2 or all("code_hash" in facts for facts in decoding):
        return []
    return [f"shards are of revisions {_short(revisions)}; whether the code that decodes differs, they do not say"]


def _short(revisions: Sequence[str]) -> str:
    return ", ".join(revision[:12] for revision in revisions)
