"""The page of a comparison: run B beside run A, or the cells of two sweeps, each beside the one of its name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from adadecode.comparison.changes import Change
from adadecode.comparison.outputs import Divergence
from adadecode.comparison.result import Comparison, Side
from adadecode.comparison.tables import (
    DETAIL_CAPTION,
    DETAIL_COLUMNS,
    MARKDOWN_HEADS,
    comparison_rows,
    detail_rows,
    side_lines,
)
from adadecode.page.chart import Chart, bars_beside, intervals, name_of
from adadecode.page.content import (
    MOST_IN_SENTENCE,
    TERMS,
    WORDS,
    Markup,
    definitions,
    esc,
    headline,
    lines,
    table,
    titled,
)
from adadecode.page.layout import Part, laid_out
from adadecode.page.provenance import commands, difference_names, differences
from adadecode.page.vocabulary import Decode, fitting, words
from adadecode.report.cells import number_text, p_text
from adadecode.report.stats import Estimate
from adadecode.report.summary import parity_line
from adadecode.runs.folder import committed_tables, read_commits

TERMS_OF_COMPARISON = {
    "A, B": "The two runs. Their rows pair by task, sample, turn, method and repeat, with the same prompt.",
    "speed B/A": "Geometric mean over n prompts of B's tokens per second by A's, with its interval; above 1, B is faster.",
    "over vanilla": "The same of each run's speedup over its own vanilla: 1 where all of B's machine was slower.",
    "change": "Of the acceptance rate, in percentage points.",
    "tokens/round": "Tokens by rounds, those of the prefill aside.",
    "parity": "Outputs that equal, token for token, vanilla's of the same run.",
    "McNemar's exact test": "How likely as many gained and lost would be by chance, for scores of 0 and 1.",
    "paired bootstrap": "The interval of the mean difference of scores, from prompts drawn again (BCa).",
} | {name: TERMS[name] for name in ("vanilla", "draft", "acceptance", "round", "TTFT", "TPOT", "p50, p90, p99")}

Known = tuple[Decode | None, dict[int, str]]  # a run's tokenizer, and the texts that it gave so far


@dataclass(frozen=True)
class Compared:
    """One comparison, and the name of its cell, None where it is of two runs."""

    cell: str | None
    comparison: Comparison


def comparison_page(compared: Sequence[Compared], notes: Sequence[str] = ()) -> str:
    """The page of one comparison, or of one for each cell; `notes` are of cells without another."""
    cells = [] if compared[0].cell is None else ["cell"]
    found = [
        line if each.cell is None else f"cell {each.cell}: {line}"
        for each in compared
        for line in each.comparison.problem_lines()
    ]
    return laid_out(
        title="AdaDecode: B beside A",
        told=_sentence(compared) if not cells else _sentence_of_cells(compared),
        charts=list(_charts(compared)),
        parts=[
            Part("figures", "Figures", _figures(compared, cells)),
            Part("outputs", "Outputs that changed", "".join(map(_outputs, compared)), "Outputs"),
            Part("checks", "What was not compared", _not_compared(compared, notes), "Not compared"),
            Part("provenance", "Provenance and commands", "".join(map(_provenance, compared)), "Provenance"),
        ],
        terms=TERMS_OF_COMPARISON,
        problems=found,
    )


def _sentence(compared: Sequence[Compared]) -> str:
    """The ratio with its interval, parity in each, how many pairs, what changed and what differs; escaped."""
    comparison = compared[0].comparison
    told = _told(comparison.changes)
    ratios = ", ".join(
        f"<strong>{change.speed.value:.2f}x</strong> on {esc(change.task)} {_interval(change.speed)}"
        for change in told[:MOST_IN_SENTENCE]
        if change.speed is not None
    )
    more = f" and {len(told) - MOST_IN_SENTENCE} more tasks" if len(told) > MOST_IN_SENTENCE else ""
    speed = f"Speed of {esc(told[0].method)} in B by A's: {ratios}{more}" if told else "No speed could be compared"
    parity = ", ".join(
        f"{name} {esc(parity_line(side.summary).removeprefix('parity '))}"
        for name, side in (("A", comparison.a), ("B", comparison.b))
    )
    named = f"A is {esc(comparison.a.location)}, B is {esc(comparison.b.location)}"
    return f"{speed}; parity {parity}; {_pairs(comparison)}; {difference_names(comparison.provenance)}. {named}."


def _sentence_of_cells(compared: Sequence[Compared]) -> str:
    """The slowest and the fastest cell, and how many are not as they should be; escaped."""
    told = [
        (one.cell, change, change.speed)
        for one in compared
        for change in _told(one.comparison.changes)
        if change.speed is not None
    ]
    wrong = sum(bool(one.comparison.problem_lines()) for one in compared)
    judged = f"not as it should be: {wrong} of them" if wrong else "all of them are as they should be"
    if not told:
        return f"{len(compared)} cells; no speed could be compared; {judged}."
    ends = [choose(told, key=lambda one: one[2].value) for choose in (min, max)]
    slowest, fastest = (
        f"<strong>{speed.value:.2f}x</strong> in {esc(cell)} with {esc(change.method)} on {esc(change.task)} "
        f"{_interval(speed)}"
        for cell, change, speed in ends
    )
    return f"{len(compared)} cells; speed in B by A's: least {slowest}, most {fastest}; {judged}."


def _told(changes: Sequence[Change]) -> list[Change]:
    """The changes that a sentence is about: those of the method that stands for all."""
    shown = headline(change.method for change in changes if change.speed is not None)
    return [change for change in changes if change.method == shown and change.speed is not None]


def _interval(of: Estimate) -> str:
    sure = "no interval" if of.low is None or of.high is None else f"95 % interval {of.low:.2f}-{of.high:.2f}"
    return f"({sure}, n = {of.num_prompts})"


def _pairs(comparison: Comparison) -> str:
    if comparison.outputs is None:
        return "summaries alone are compared"
    num_pairs, changed = comparison.outputs.num_pairs, comparison.outputs.num_different
    left_out = sum(comparison.left_out.values())
    told = f"{num_pairs:,} pairs of rows, {f'{changed:,} outputs differ' if changed else 'all outputs equal'}"
    return told + (f"; {left_out:,} rows are not compared" if left_out else "")


def _charts(compared: Sequence[Compared]) -> Iterator[Chart]:
    names = ("what", "method", "ratio", "low", "high", "n")
    for key, title, says, of in (
        ("speed", "Speed of B by A's", "Above 1, B is faster. The line is the 95 % interval.", "speed"),
        ("over-vanilla", "Speedup over vanilla, B's by A's", "In it a slower machine does not count.", "over_vanilla"),
    ):
        found = [(each, change, getattr(change, of)) for each in compared for change in each.comparison.changes]
        values = [
            {
                "of": _of(each, change),
                "method": change.method,
                "ratio": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "n": ratio.num_prompts,
            }
            for each, change, ratio in found
            if ratio is not None
        ]
        if values:
            rows = [tuple(value.values()) for value in values]
            yield Chart(key, title, says, intervals(values, "ratio", "B by A"), names, rows)
    rates = [
        {"of": _of(each, change), "run": run, "rate": rate}
        for each in compared
        for change in each.comparison.changes
        for run, rate in (("A", change.acceptance.before), ("B", change.acceptance.after))
        if rate is not None
    ]
    if rates:
        yield Chart(
            "acceptance",
            "Acceptance in A and in B",
            "Share of the drafts that verification kept.",
            bars_beside(rates, "rate", "share accepted", "run", format="%"),
            ("what", "run", "share accepted"),
            [tuple(value.values()) for value in rates],
        )


def _of(compared: Compared, change: Change) -> str:
    name = name_of(change.task, change.method)
    return name if compared.cell is None else f"{compared.cell}: {name}"


def _figures(compared: Sequence[Compared], cells: list[str]) -> str:
    def rows(of: Callable[[Comparison], Iterator[Sequence[Any]]]) -> list[tuple[Any, ...]]:
        return [(*([each.cell] if cells else []), *row) for each in compared for row in of(each.comparison)]

    changes = rows(lambda of: comparison_rows(of, repeat_task=True))
    times = rows(lambda of: detail_rows(of, repeat_names=True))
    scores = rows(_score_rows)
    spread = [line for each in compared for line in each.comparison.spread]
    parts = [titled("What changed", table((*cells, *MARKDOWN_HEADS), changes, "What changed, by task and method"))]
    if scores:
        parts.append(titled("Scores", table((*cells, *SCORE_COLUMNS), scores, "Scores in A and in B, of the pairs")))
    if times:
        parts.append(titled("Percentiles", table((*cells, *DETAIL_COLUMNS), times, f"Times {DETAIL_CAPTION}")))
    if spread:
        parts.append(titled("Between workers and repeats", lines(spread)))
    return "".join(parts)


SCORE_COLUMNS = ("task", "metric", "method", "n", "A", "B", "difference (95 % interval)", "gained", "lost", "p", "test")


def _score_rows(comparison: Comparison) -> Iterator[Sequence[Any]]:
    for one in comparison.scores:
        of = one.change
        ends = "" if of.low is None or of.high is None else f" ({of.low:+.4f} to {of.high:+.4f})"
        yield (
            *(one.task, one.metric, one.method, of.num_prompts),
            *(number_text(of.before, ".3f"), number_text(of.after, ".3f"), f"{of.after - of.before:+.4f}{ends}"),
            *(of.num_gained, of.num_lost, None if of.p_value is None else p_text(of.p_value), of.test),
        )


def _outputs(compared: Compared) -> str:
    """How many outputs changed, and the tokens around the first divergence of each that is kept."""
    outputs = compared.comparison.outputs
    if outputs is None:
        return _under(compared, "<p>Rows are not there, so no outputs are compared.</p>")
    if not outputs.num_different:
        return _under(compared, f"<p>All {outputs.num_pairs:,} are equal, token for token.</p>")
    sides = (compared.comparison.a, compared.comparison.b)
    decoders = [(_decoder(side), dict[int, str]()) for side in sides]
    rows = [
        (one.name, ", ".join(one.methods), "the end" if one.at is None else one.at, *_texts(one, decoders))
        for one in outputs.divergences
    ]
    shown = f", the first {len(rows)} of {outputs.num_places:,} places" if outputs.num_places > len(rows) else ""
    told = f"{outputs.num_different:,} of {outputs.num_pairs:,} outputs differ{shown}"
    columns = ("sample", "methods", "differs at position", "A", "B")
    caption = f"{told}; the first token that is another is framed"
    return _under(compared, table(columns, rows, caption, {*WORDS, "sample", "A", "B"}))


def _texts(one: Divergence, decoders: Sequence[Known]) -> tuple[Markup | str, ...]:
    """A's and B's tokens around the divergence as markup; `where` twice where only the ends differ."""
    if one.at is None:
        return one.where, one.where
    return tuple(_text(ids, one.at - one.start, *known) for ids, known in zip(one.ids, decoders, strict=True))


def _text(ids: Sequence[int], at: int, decode: Decode | None, known: dict[int, str]) -> Markup:
    """`ids` as text with the token at place `at` framed, their numbers where there is no tokenizer."""
    texts = [f"{token_id} " for token_id in ids] if decode is None else words(decode, ids, known)
    before, token, after = "".join(texts[:at]), "".join(texts[at : at + 1]), "".join(texts[at + 1 :])
    framed = esc(token) if at < len(ids) else "(ended)"
    return Markup(f'{esc(before)}<span class="tok diff">{framed}</span>{esc(after)}')


def _decoder(side: Side) -> Decode | None:
    """The tokenizer of the run where it is on this machine and gives the run's own texts."""
    first = dict(islice(read_commits(side.location).items(), 1))
    return next((fitting(side.run, rows) for rows in committed_tables(side.location, first)), None)


def _not_compared(compared: Sequence[Compared], notes: Sequence[str]) -> str:
    cells = [] if compared[0].cell is None else ["cell"]
    found = [
        (*([each.cell] if cells else []), why, method, count)
        for each in compared
        for (why, method), count in each.comparison.left_out.items()
    ]
    told = [
        line if each.cell is None else f"cell {each.cell}: {line}"
        for each in compared
        for line in each.comparison.notes
    ]
    counts = table((*cells, "rows that are", "method", "rows"), found, "Rows without another") if found else ""
    return lines([*notes, *told] or ["Every row of both runs is compared."]) + counts


def _provenance(compared: Compared) -> str:
    comparison = compared.comparison
    made = "".join(
        definitions([line.split(": ", 1)], "facts") + commands(side.run)
        for line, side in zip(side_lines(comparison), (comparison.a, comparison.b), strict=True)
    )
    return _under(compared, made + differences(("A", "B"), comparison.provenance))


def _under(compared: Compared, content: str) -> str:
    """`content` under the name of its cell, where it has one."""
    return content if compared.cell is None else titled(f"Cell {compared.cell}", content)
