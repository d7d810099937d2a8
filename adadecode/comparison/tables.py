"""What a person reads of a comparison: a table and lines, on a terminal or as Markdown for a pull request."""

import re
from collections.abc import Iterator, Sequence

from rich.table import Table

from adadecode.comparison.changes import MetricChange
from adadecode.comparison.provenance import difference_lines
from adadecode.comparison.result import Comparison
from adadecode.printable import printable
from adadecode.report.cells import ABSENT, cell, number_text, p_text
from adadecode.report.detail import percentile_texts
from adadecode.report.foreign import foreign_text
from adadecode.report.paired import ScoreChange
from adadecode.report.stats import Estimate
from adadecode.report.tables import figures_table
from adadecode.runs.engines import stored_facts

COLUMNS = (
    "task",
    "method",
    "n",
    "speed B/A\n(95 % CI)",
    "over vanilla\n(95 % CI)",
    "accept B-A\n(95 % CI)",
    "parity\nA",
    "\nB",
)
RATES_COLUMNS = ("task", "method", "accept\nrate A", "\nB", "tokens\n/round A", "\nB")
CAPTION = (
    "speed B/A: geometric mean over n prompts of B's tokens/s by A's, above 1 where B is faster; over vanilla: the same of "
    "each run's speedup over its own vanilla; accept B-A: in percentage points"
)
MARKDOWN_HEADS = (
    *("task", "method", "n", "speed B/A (95 % CI)", "over vanilla B/A (95 % CI)", "accept rate A", "accept rate B"),
    *("change (95 % CI)", "tokens/round A", "tokens/round B", "parity A", "parity B"),
)
DETAIL_COLUMNS = ("task", "method", "time", "run", "n", "p50 ms", "p90 ms", "p99 ms")
DETAIL_CAPTION = "of the pairs; p99 from 100 values on"


def comparison_table(comparison: Comparison) -> Table:
    """A rich table with a line for each task and method that is in both runs, in 80 columns."""
    table = figures_table(COLUMNS, num_names=2, caption=CAPTION)
    for task, method, n, speed, over_vanilla, _, _, points, _, _, *parity in comparison_rows(comparison):
        table.add_row(*map(cell, (task, method, n, speed, over_vanilla, points, *parity)))
    return table


def rates_table(comparison: Comparison) -> Table:
    """A rich table of acceptance and tokens per round in each run."""
    table = figures_table(RATES_COLUMNS, num_names=2, caption=None)
    for task, method, _, _, _, *accepted, _, before, after, _, _ in comparison_rows(comparison):
        table.add_row(*map(cell, (task, method, *accepted, before, after)))
    return table


def detail_table(comparison: Comparison) -> Table:
    """A rich table of the percentiles of TTFT, TPOT and e2e in each run."""
    table = figures_table(DETAIL_COLUMNS, num_names=4, caption=DETAIL_CAPTION)
    for cells in detail_rows(comparison):
        table.add_row(*map(cell, cells))
    return table


def comparison_lines(comparison: Comparison) -> list[str]:
    """What stands under the table: scores, outputs, what was not compared, every difference of provenance."""
    return [
        *_score_lines(comparison.scores),
        *([] if comparison.outputs is None else comparison.outputs.lines()),
        *comparison.notes,
        *_foreign_lines(comparison),
        *difference_lines(comparison.provenance),
    ]


def _foreign_lines(comparison: Comparison) -> list[str]:
    """By side, what heads of other weights it had."""
    sides = (("A", comparison.a), ("B", comparison.b))
    told = [(name, foreign_text(facts)) for name, side in sides for facts in stored_facts(side.run)]
    return list(dict.fromkeys(f"{name}: {text}" for name, text in told if text is not None))


def side_lines(comparison: Comparison) -> list[str]:
    """Which run is A and which B, with its state."""
    sides = (("A", comparison.a), ("B", comparison.b))
    return [f"{name}: {side.location} (run {side.run['run_id']}, {side.run.get('status')})" for name, side in sides]


def markdown(comparison: Comparison, detail: bool, heading: str | None = None) -> str:
    """The same as Markdown. What comes from elsewhere stands as code, so that none of it links, mentions or is HTML."""
    blocks = [f"### {_code(heading)}"] if heading is not None else []
    blocks += [
        _list(side_lines(comparison)),
        _table(MARKDOWN_HEADS, comparison_rows(comparison, repeat_task=True), num_names=2),
    ]
    if detail:
        blocks.append(_table(DETAIL_COLUMNS, detail_rows(comparison, repeat_names=True), num_names=4))
    blocks.append(_list(comparison_lines(comparison) + (comparison.spread if detail else [])))
    if problems := comparison.problem_lines():
        blocks += ["**Not as it should be**", _list(problems)]
    return "\n\n".join([*blocks, f"*{CAPTION}*"]) + "\n"


def comparison_rows(comparison: Comparison, repeat_task: bool = False) -> Iterator[Sequence[str]]:
    """A row of texts under MARKDOWN_HEADS for each task and method; its task is empty where the row before has it."""
    shown = None
    for change in comparison.changes:
        task = "" if change.task == shown and not repeat_task else change.task
        shown = change.task
        accepted, per_round = change.acceptance, change.tokens_per_round
        yield (
            task,
            change.method,
            ABSENT if change.speed is None else str(change.speed.num_prompts),
            ratio_text(change.speed),
            ratio_text(change.over_vanilla),
            number_text(accepted.before, ".1%"),
            number_text(accepted.after, ".1%"),
            points_text(accepted.change),
            number_text(per_round.before, ".2f"),
            number_text(per_round.after, ".2f"),
            *(side.parity(change.task, change.method) for side in (comparison.a, comparison.b)),
        )


def detail_rows(comparison: Comparison, repeat_names: bool = False) -> Iterator[Sequence[str]]:
    """A row of texts under DETAIL_COLUMNS for each time of each run; names are empty where the row before has them."""
    for change in comparison.changes:
        names = (change.task, change.method)
        for column, sides in change.latencies.items():
            for side, found in zip(("A", "B"), sides, strict=True):
                yield (*names, column.removesuffix("_s"), side, *percentile_texts(found))
                names = names if repeat_names else ("", "")


def ratio_text(estimate: Estimate | None) -> str:
    """`0.93x (0.92-0.93)`, `0.93x (no interval)` where the data allow none."""
    if estimate is None:
        return ABSENT
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}x (no interval)"
    return f"{estimate.value:.2f}x ({estimate.low:.2f}-{estimate.high:.2f})"


def points_text(estimate: Estimate | None) -> str:
    """`-2.2 (-3.1,-1.3)`, a difference of shares in percentage points."""
    if estimate is None:
        return ABSENT
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:+.1f} (no interval)"
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f},{100 * estimate.high:+.1f})"


def _score_lines(found: Sequence[MetricChange]) -> list[str]:
    """A line for each task and metric, methods with the same one together."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        lines.setdefault((one.task, one.metric, _score_text(one.change)), []).append(one.method)
    return [f"scores {task} {metric} ({', '.join(methods)}): {text}" for (task, metric, text), methods in lines.items()]


def _score_text(change: ScoreChange) -> str:
    line = f"A {change.before:.3f}, B {change.after:.3f}, n={change.num_prompts}"
    if change.p_value is not None:
        told = p_text(change.p_value)
        return f"{line}, {change.num_gained} gained, {change.num_lost} lost, {told} ({change.test})"
    if change.low is not None and change.high is not None:
        ends = f"{change.low:+.4f} to {change.high:+.4f}"
        return f"{line}, {change.after - change.before:+.4f}, 95 % {ends} ({change.test})"
    return f"{line} ({change.test})"


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]], num_names: int) -> str:
    """A table whose first `num_names` columns hold names, and the others figures of ours."""
    lines = ["|" + "|".join(heads) + "|", "|" + "---|" * len(heads)]
    for cells in rows:
        names = [_code(name).replace("|", "\\|") for name in cells[:num_names]]
        lines.append("|" + "|".join([*names, *cells[num_names:]]) + "|")
    return "\n".join(lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_code(line)}" for line in lines)


def _code(text: str) -> str:
    """`text` on one line as a code span, whose fence is longer than any in it."""
    line = printable(text)
    fence = "`" * (1 + max((len(found) for found in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
