"""What every page is made of: the first sentence, tables, lists, the terms; all text escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adadecode.methods import OURS, names_that_owe
from adadecode.page.chart import Chart
from adadecode.printable import printable

Row = Mapping[str, Any]


class Markup(str):
    """Text that is an element of a page already: `esc` made what is in it."""


MOST_IN_SENTENCE = 3  # tasks
# Columns that begin at the left
NAMES = ("cell", "run", "task", "method", "methods", "task and method", "metric", "scorer", "test", "time")
WORDS = frozenset((*NAMES, "part", "what", "between", "in", "rows that are"))

TERMS = {
    "vanilla": "Decoding by the full model, greedy or drawn, one token a pass; vanilla-w1 is the same at width 1.",
    "baseline": "The faster of the vanillas on a task: what speedups are over.",
    "speedup": "Geometric mean over n prompts of the ratio of end-to-end times. In brackets its 95 % interval.",
    "interval": "What holds the true value 95 times of 100, had other prompts of the kind been drawn; none below 8.",
    "n": "How many prompts, or values, a figure is of.",
    "parity": "Outputs that equal vanilla's token for token, of those that owe it.",
    "TTFT": "Time to first token: from the start of the prefill.",
    "TPOT": "Mean time per output token after the first.",
    "exit": "A layer at which a small head proposes the next token; 0 stands for n-grams and draft models.",
    "draft": "A token that was proposed before the full model ran; the full model then accepts or rejects it.",
    "acceptance": "Drafts that the full model kept, of all that were made.",
    "round": "What ends with one pass to the last layer: the drafts it accepts, and one token of the full model.",
    "rejected": "A draft that was not accepted, struck through where it would have stood.",
    "layers a token": "Layers run for each token after the first; vanilla runs all of them.",
    "layers alone": "The speedup if time were layers run and nothing else: a ceiling for these drafts.",
    "oracle": "What a perfect policy over the same heads would reach, as a tuning predicts it.",
    "p50, p90, p99": "Half, 90 % and 99 % of the values are not larger. p99 is shown from 100 values on.",
    "between workers": "Standard deviation of what workers add to the logarithm of TPOT; 2 % says some 2 % apart.",
    "between repeats": "The same of end-to-end times of the same prompts, decoded again.",
    "logits": "The model's scores of all tokens: equal logits are equal in every bit.",
    "tokens a round": "Tokens after the first by rounds; vanilla has one.",
    "correct": "Outputs with the answer that the data set gives, where it gives one.",
    "apart by, within one": "What workers or repeats add, and what one of them varies by itself, both as shares of a time.",
    "F test": "How likely workers or repeats would look as far apart by chance.",
    "near tie": "An output that differs where vanilla's two best logits are closer than rounding.",
}


def esc(value: object, keep: str = "") -> str:
    """`value` as text of a page: nothing in it is markup, a line unless they are in `keep`, or a change of direction."""
    return html.escape(printable("-" if value is None else str(value), keep), quote=True)


def sentence(summary: Sequence[Row], parity: str, model: str, engines: Sequence[str]) -> str:
    """How much faster, how sure, whether exact, on what: the first that a person reads, escaped."""
    rows = [row for row in summary if row["category"] is None]
    shown = shown_method(rows)
    told = [row for row in rows if row["method"] == shown and row["speedup_geomean"] is not None]
    machine = "; ".join(line.partition(": ")[2] or line for line in engines[:1]) or "unknown"
    on = f"model {esc(model)}; {esc(machine)}"
    if shown is None or not told:
        return f"No speedup was measured; {esc(parity)}; {on}."
    parts = [f"<strong>{_times(row)}</strong> on {esc(row['task'])} {interval(row)}" for row in told[:MOST_IN_SENTENCE]]
    more = f" and {len(told) - MOST_IN_SENTENCE} more tasks" if len(told) > MOST_IN_SENTENCE else ""
    return f"Speed of {esc(shown)} over the faster vanilla: {', '.join(parts)}{more}; {esc(parity)}; {on}."


def shown_method(rows: Sequence[Row]) -> str | None:
    """The method a page is about: AdaDecode where it ran, else the first exact one that is no baseline."""
    return headline(row["method"] for row in rows if row["method"] != row["baseline"])


def headline(methods: Iterable[str]) -> str | None:
    """Which of `methods` stands for all: AdaDecode, else the first that owes vanilla's outputs, else the first."""
    names = list(methods)
    exact = [name for name in names if name in names_that_owe("exact")]
    return OURS if OURS in names else next(iter(exact or names), None)


def _times(row: Row) -> str:
    return f"{row['speedup_geomean']:.2f}x"


def interval(row: Row) -> str:
    """The interval of a SUMMARY row's speedup and the number of prompts, in brackets."""
    low, high = row["speedup_geomean_low"], row["speedup_geomean_high"]
    sure = "no interval" if low is None or high is None else f"95 % interval {low:.2f}-{high:.2f}"
    return f'<span class="whole">({sure}, n = {row["num_prompts"]})</span>'


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, words: Iterable[str] = WORDS) -> str:
    """An HTML table in a box that scrolls by itself, its first column as heads of rows; what is no Markup is escaped.

    The columns named in `words` begin at the left, the others, which are of figures, end at the right.
    """
    named = frozenset(words)
    sides = [' class="words"' if name in named else "" for name in columns]
    head = "".join(f'<th scope="col"{side}>{esc(name)}</th>' for name, side in zip(columns, sides, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, range(len(row)), row, sides))}</tr>" for row in rows)
    label = esc(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(idx: int, value: Any, side: str) -> str:
    if idx == 0:
        return f'<th scope="row">{esc(value)}</th>'
    if isinstance(value, float):
        return f"<td{side}>{value:.4g}</td>"
    return f"<td{side}>{value if isinstance(value, Markup) else esc(value)}</td>"


def chart(of: Chart) -> str:
    """A figure: title, what it shows, a place for the drawing, and its figures as a table."""
    title = esc(of.title)
    return (
        f'<figure class="card"><figcaption><h3>{title}</h3><p>{esc(of.says)}</p></figcaption>'
        f'<div class="chart" id="chart-{of.key}" role="img" aria-label="{title}; the table below has its figures"></div>'
        f"<details><summary>Figures of: {title}</summary>{table(of.columns, of.rows, of.title)}</details></figure>"
    )


def titled(title: str, content: str) -> str:
    """`content`, which is markup, under a heading within its part of the page."""
    return f"<h3>{esc(title)}</h3>{content}"


def definitions(terms: Iterable[Sequence[str]], name: str) -> str:
    """Names and values."""
    return (
        f'<dl class="{name}">' + "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in terms) + "</dl>"
    )


def lines(texts: Iterable[str]) -> str:
    """A list of lines."""
    return "<ul>" + "".join(f"<li>{esc(text)}</li>" for text in texts) + "</ul>"
