"""The table of checks, and a run looked at by all of them: what an earlier one found to fail, later ones do not try."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adadecode.doctor import loaded, machine, memory, run_folder, sources
from adadecode.doctor.finding import Finding
from adadecode.doctor.subject import Subject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """A row: what is looked at, where - where the driver is or where a worker will be -, and after which other checks."""

    name: str
    look: Callable[[Subject], Iterable[Finding]]
    where: Literal["driver", "worker"]
    after: tuple[str, ...] = ()


CHECKS = (
    Check("python", machine.python, "driver"),
    Check("packages", machine.packages, "driver"),
    Check("data", sources.data, "driver"),
    Check("run folder", lambda subject: run_folder.folder(subject.location), "driver"),
    Check("processor", machine.processor, "worker"),
    Check("gpus", machine.gpus, "worker"),
    Check("kernels", machine.kernels, "worker", ("gpus",)),
    Check("files", sources.files, "worker"),
    Check("family", sources.family, "worker", ("files",)),
    Check("heads", sources.heads, "worker", ("family",)),
    Check("memory", memory.memory, "worker", ("gpus", "kernels", "family")),
    Check("model", loaded.model, "worker", ("memory",)),
    Check("rows", loaded.rows, "worker", ("model",)),
    Check("ties", loaded.ties, "worker", ("model",)),
    Check("exits", loaded.heads, "worker", ("model", "heads")),
    Check("graphs", loaded.graphs, "worker", ("model", "exits")),
    Check("methods", loaded.methods, "worker", ("rows", "exits", "graphs")),
)


def examine(subject: Subject, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """What `checks` find of `subject`, as they find it; whatever one raises is a finding that says so."""
    failed: set[str] = set()
    for check in checks:
        before = [name for name in check.after if name in failed]
        found = list(_looked(check, subject)) if not before else [_not_tried(check, before)]
        yield from found
        if any(finding.status in ("will fail", "not tried") for finding in found):
            failed.add(check.name)


def _looked(check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        yield from check.look(subject)
    except Exception as error:  # a library's own, of a device that is broken: all of it is what a run would meet
        log.debug("%s", check.name, exc_info=True)
        yield Finding.of_error(check.name, error)


def _not_tried(check: Check, before: Sequence[str]) -> Finding:
    return Finding(check.name, "not tried", f"it needs {' and '.join(before)}")
