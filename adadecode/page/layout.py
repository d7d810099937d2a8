"""How every page is laid out: the first sentence and what is wrong, links to the parts, charts, the parts, the terms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adadecode.errors import EXIT_OK
from adadecode.page.chart import Chart, give_same_colors
from adadecode.page.content import chart, definitions, esc, lines
from adadecode.page.document import document
from adadecode.printable import printable


@dataclass(frozen=True)
class Page:
    """A document, and what the runs on it come to: an exit code, and why it is not 0."""

    html: str
    exit_code: int = EXIT_OK
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """A part of a page with its link: `content` is markup."""

    key: str
    title: str
    content: str
    link: str | None = None  # the title where it is None


def laid_out(
    *,
    title: str,
    told: str,
    charts: Sequence[Chart],
    parts: Sequence[Part],
    terms: Mapping[str, str],
    problems: Sequence[str] = (),
    samples: Mapping[str, Any] | None = None,
    blocks: Sequence[str] = (),
) -> str:
    """The document: `told` is markup, `samples` and `blocks` are what the sample browser reads."""
    give_same_colors(charts)
    drawn = f'<div class="charts">{"".join(map(chart, charts)) or "<p>Nothing to draw was measured.</p>"}</div>'
    legend = Part("legend", "Terms", definitions(terms.items(), "terms"))
    whole = [Part("charts", "Charts", drawn), *parts]
    whole.insert(next((idx for idx, part in enumerate(whole) if part.key == "provenance"), len(whole)), legend)
    links = "\n".join(f'<a href="#{part.key}">{esc(part.link or part.title)}</a>' for part in whole)
    wrong = f'<div class="bad" role="note">{lines(problems)}</div>' if problems else ""
    body = f"""<a class="skip" href="#main">To the figures</a>
<header><h1>{esc(title)}</h1><p class="lead">{told}</p>{wrong}
<nav aria-label="Parts of the page">{links}</nav></header>
<main id="main">
{"".join(map(_section, whole))}
</main>"""
    data = {"charts": {one.key: _plain(one.spec) for one in charts}, **(samples or {})}
    return document(title, body, data, blocks)


def _section(part: Part) -> str:
    return (
        f'<section aria-labelledby="h-{part.key}" id="{part.key}"><h2 id="h-{part.key}">{esc(part.title)}</h2>'
        f"{part.content}</section>\n"
    )


def _plain(value: Any) -> Any:
    """`value` as JSON has it, its texts as a page may show them; numbers that JSON has not are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(value.item()) if hasattr(value, "item") else value
