"""What a person reads of a capacity: expected tokens and times as rich tables, and what they rest on as lines."""

from rich import box
from rich.table import Table

from adadecode.evaluation.capacity import Capacity
from adadecode.report.cells import cell, duration_text


def methods_table(capacity: Capacity) -> Table:
    """A rich table with one line per method and one for all: expected output tokens and seconds of one worker."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("method")
    for name in ("expected\noutput tokens", "time on\none worker", "tokens\n/s"):
        table.add_column(name, justify="right", no_wrap=True)
    lines = [(method, capacity.tokens[method], capacity.busy_s[method]) for method in capacity.tokens]
    for name, tokens, busy_s in [*lines, ("all", sum(capacity.tokens.values()), sum(capacity.busy_s.values()))]:
        rate = f"{tokens / busy_s:.1f}" if busy_s else "-"
        table.add_row(*map(cell, (name, f"{tokens:.0f}", duration_text(busy_s), rate)))
    return table


def times_table(capacity: Capacity, unit: str) -> Table:
    """A rich table with one line per number of workers; `unit` is what a worker has one of: `GPU`, or `worker`."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in (f"{unit}s", "expected\ntime", f"{unit}-\nhours", "share of\ntime busy"):
        table.add_column(name, justify="right", no_wrap=True)
    for time in capacity.times:
        cells = (
            str(time.num_workers),
            duration_text(time.wall_s),
            f"{time.worker_hours:.3g}",
            f"{time.busy_share:.0%}",
        )
        table.add_row(*map(cell, cells))
    return table


def capacity_lines(capacity: Capacity) -> list[str]:
    """What the tables rest on, and what they leave out."""
    num_samples = capacity.num_same + capacity.num_of_task + capacity.num_of_other_tasks
    sources = [(capacity.num_same, "as that run measured them"), (capacity.num_of_task, "the mean of their task there")]
    sources.append((capacity.num_of_other_tasks, f"the mean over its other tasks (none of {_names(capacity)} there)"))
    lines = [
        f"rates: {capacity.measured_on}",
        f"times of {num_samples} samples: " + "; ".join(f"{n} {source}" for n, source in sources if n),
        f"{capacity.num_shards} shards, longest prompts first; not counted: start-up (Ray, loading and warming up the "
        "model), comparing and writing",
    ]
    if capacity.differences:
        lines.append(f"warning: the rates are of other settings: {'; '.join(capacity.differences)}")
    return lines


def _names(capacity: Capacity) -> str:
    return ", ".join(capacity.other_tasks)
