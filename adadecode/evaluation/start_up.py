"""What a worker's time goes to before its first sample, as its facts have it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adadecode.printable import on_one_line
from adadecode.stopwatch import Stopwatch

WARM_UP = "warm-up of "  # and a method: the name of its lap


@dataclass(frozen=True)
class StartUp:
    """Seconds from when a worker was asked for until it was warm, each counted once; None for what it did not do.

    `process_s` is until Ray's process answered, the wait for a node with it, by the clocks of two machines; `fetch_s` is
    for weights that came from the hub; `kernels_s` for kernels to be compiled, loaded or captured and weights to be packed
    for them, whenever that was; `rows_s` for the check that rows are independent; `warm_up_s` is by method, over all tasks.
    """

    process_s: float | None
    imports_s: float | None
    fetch_s: float | None
    model_s: float | None
    kernels_s: float | None
    rows_s: float | None
    warm_up_s: dict[str, float] = field(default_factory=dict[str, float])
    other_s: float | None = None

    @classmethod
    def of(cls, watch: Stopwatch) -> "StartUp":
        """What `watch` has counted by now."""
        watch.begin("")
        seconds = {name: round(s, 6) for name, s in watch.seconds.items()}
        return cls(
            *(seconds.get(lap) for lap in ("process", "imports", "fetch", "model", "kernels", "rows")),
            warm_up_s={lap.removeprefix(WARM_UP): s for lap, s in seconds.items() if lap.startswith(WARM_UP)},
            other_s=seconds.get(""),
        )

    def facts(self) -> dict[str, Any]:
        """As a commit stores it."""
        return asdict(self)


def start_up_lines(workers: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line with the longest start-up of `workers`, facts of any content, by what it was for; none where none says it."""
    found = ((worker.get("worker_id"), _seconds(worker.get("start_up"))) for worker in workers)
    said = [
        (worker_id, laps) for worker_id, laps in found if laps
    ]  # a resumed run's workers have the names of the first
    if not said:
        return []
    worker_id, laps = max(said, key=lambda one: sum(one[1].values()))
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in laps.items() if seconds >= 0.05)
    of = f"start-up of {on_one_line(worker_id)}" + (f", the longest of {len(said)} workers" if len(said) > 1 else "")
    return [f"{of}: {sum(laps.values()):.1f} s ({parts})"]


def _seconds(start_up: Any) -> dict[str, float]:
    """The laps of a stored start-up that are seconds, by name; warm-up as one."""
    if not isinstance(start_up, dict):
        return {}
    found = {name.removesuffix("_s").replace("_", "-"): s for name, s in start_up.items() if _is_time(s)}
    warm_up = start_up.get("warm_up_s")
    if isinstance(warm_up, dict) and (times := [s for s in warm_up.values() if _is_time(s)]):
        found["warm-up"] = sum(times)
    return found


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
