"""How a run goes, while it goes: a display that redraws itself on a terminal, a plain line now and then in a log."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adadecode.evaluation.progress import RunProgress
from adadecode.printable import printable
from adadecode.records import WorkerState
from adadecode.report.cells import cell, duration_text

PLAIN_EVERY_S = 10.0
DRAW_EVERY_S = 0.25
MAX_NAMED_WORKERS = 8  # in a plain line; of more there are only counts
LINES_BESIDE_WORKERS = 5  # of a terminal's height: bar, figures, heading, what is left out, the prompt


class LiveProgress:
    """A context in which a run shows how it goes, on `console`.

    Draws only from within its methods, never from a thread of its own: decoding in this process is being timed.
    """

    def __init__(self, progress: RunProgress, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._console, self._clock = progress, console, clock
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._every_s = PLAIN_EVERY_S if self._live is None else DRAW_EVERY_S
        self._due_at = clock() + self._every_s
        self._workers: Sequence[WorkerState] = ()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers = ()  # they are gone, or no longer watched
        self._show()
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Shows how the run stands, when that is due; call it as often as you like."""
        self._show_when_due()

    def update(self, workers: Sequence[WorkerState]) -> None:
        """Takes what the workers do now; call it as often as you like."""
        self._workers = workers
        self._show_when_due()

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(cell(line), soft_wrap=True)

    def _show_when_due(self) -> None:
        if self._clock() >= self._due_at:
            self._show()

    def _show(self) -> None:
        self._due_at = self._clock() + self._every_s
        if self._live is None:
            self.say(plain_line(self._progress, self._workers))
        else:
            self._live.update(drawing(self._progress, self._workers, self._console.size.height), refresh=True)


def plain_line(progress: RunProgress, workers: Sequence[WorkerState]) -> str:
    """`12/48 samples, 350 tokens/s, ETA 1m40s, parity 12/12, 0 errors; 1 worker: worker-0 shard 7 (3 s)`."""
    line = f"{progress.num_done}/{progress.num_planned} samples, {', '.join(_figures(progress))}"
    return f"{line}; {workers_text(workers)}" if workers else line


def workers_text(workers: Sequence[WorkerState]) -> str:
    """How many workers there are and what each does, or how many do what when there are many."""
    if len(workers) <= MAX_NAMED_WORKERS:
        each = ", ".join(f"{w.name} {_activity(w)} ({duration_text(w.for_s)})" for w in workers)
    else:
        each = ", ".join(f"{count} {phase}" for phase, count in Counter(w.phase for w in workers).most_common())
    return f"{len(workers)} worker{'s'[: len(workers) > 1]}: {each}"


def drawing(progress: RunProgress, workers: Sequence[WorkerState], height: int) -> Group:
    """A bar, the figures under it and a table of the workers, as many as `height` lines have room for."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text("samples"),
        ProgressBar(total=progress.num_planned, completed=progress.num_done, width=40),
        Text(f"{progress.num_done}/{progress.num_planned}"),
    )
    parts: list[Table | Text] = [bar, Text(", ".join(_figures(progress)))]
    if workers:
        shown = workers[: max(1, height - LINES_BESIDE_WORKERS)]
        parts.append(_workers_table(shown))
        if len(shown) < len(workers):
            parts.append(
                Text(f"and {printable(workers_text(workers[len(shown) :]))}", no_wrap=True, overflow="ellipsis")
            )
    return Group(*parts)


def _workers_table(workers: Sequence[WorkerState]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("worker", "node", "doing", "for"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if name == "for" else "left")
    for worker in workers:
        table.add_row(*map(cell, (worker.name, worker.node, _activity(worker), duration_text(worker.for_s))))
    return table


def _figures(progress: RunProgress) -> list[str]:
    rate, eta_s, num_errors = progress.tokens_per_s, progress.eta_s, progress.num_errors
    speed = [] if rate is None else [f"{rate:.0f} tokens/s"]
    left = [f"ETA {duration_text(eta_s)}"] if eta_s is not None and progress.num_done < progress.num_planned else []
    return [*speed, *left, progress.parity, f"{num_errors} error{'s' if num_errors != 1 else ''}"]


def _activity(worker: WorkerState) -> str:
    return worker.doing if worker.phase == "working" else worker.phase
