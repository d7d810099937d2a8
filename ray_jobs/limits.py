"""How patient a run is: with actors that do not answer, that die and that fail to load, and with items they die of."""

from dataclasses import dataclass

FIRST_DEADLINE_S = 900.0
FIRST_SAMPLE_S = 225.0  # of each sample, where a shard has more than four


@dataclass(frozen=True)
class Limits:
    """When an actor counts as hung, an item as poison and a run as lost."""

    max_deaths: int = 2  # places at which an item may end an actor before it is split, or given up where it cannot be
    max_load_failures: int = 4  # in a row, without any that loaded, before the run fails when nobody is at work
    max_errors: int = 2  # raised at work, without anything finished, before the run fails when every place raised one
    backoff_s: float = 10.0  # after an actor failed, doubled each time: a lost node looks alive for a while
    longest_rest_s: float = 1800.0  # of a place at which actors die, and of starts after loads that failed
    away_s: float = 600.0  # after its last actor was lost a place may have one again
    start_s: float = 60.0  # an actor that has not begun to load by then waits for a node
    load_deadline_s: float = 1800.0
    first_deadline_s: float | None = FIRST_DEADLINE_S  # of an item before any was timed; None: items have no deadline
    least_deadline_s: float = 60.0
    most_doublings: int = 3  # of an item's deadline, one for each actor it ended
    slack: float = 4.0  # times the slowest time per size that was seen
    exclusive: bool = (
        False  # an item is one actor's while that lives: none is queued, which another might steal, or done twice
    )
    grace_s: float = 20.0  # for what others have in flight when an error ends the run
