"""Charts as Vega-Lite specifications, each with a title, a sentence for who does not see it, and its figures as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adadecode.page.chart import Chart, axis, bars_beside, color_by, intervals, name_of, names_axis, spec_of, tall
from adadecode.page.figures import latency_texts
from adadecode.page.measures import MOST_TOKENS, Measured, ecdf
from adadecode.report.detail import Latency

By = Mapping[tuple[str, str], Measured]
Row = Mapping[str, Any]


def run_charts(
    summary: Sequence[Row], by: By, times: Sequence[Latency], bars: Sequence[tuple[str, str, float]]
) -> Iterator[Chart]:
    """The charts of a run: of its SUMMARY rows, of what was measured, and of `bars`: (task and method, what, speedup).

    `times` are the percentiles beside the distributions.
    """
    rows = [row for row in summary if row["category"] is None]
    yield from _speedups(rows)
    yield from _distributions(by, times)
    yield from _by_exit(by)
    yield from _by_place(by)
    yield from _tokens_per_round(by)
    yield from _time(by)
    yield from _bars(bars)


def _speedups(rows: list[Row]) -> Iterator[Chart]:
    told = [row for row in rows if row["speedup_geomean"] is not None and row["method"] != row["baseline"]]
    if not told:
        return
    values = [
        {
            "of": name_of(row["task"], row["method"]),
            "method": row["method"],
            "speedup": row["speedup_geomean"],
            "low": row["speedup_geomean_low"],
            "high": row["speedup_geomean_high"],
            "prompts": row["num_prompts"],
        }
        for row in told
    ]
    yield Chart(
        "speedups",
        "Speedup by task and method",
        "Geometric mean over prompts of the ratio of end-to-end times, over the faster vanilla, with its 95 % interval.",
        intervals(values, "speedup", "times the baseline's speed"),
        ("task and method", "speedup", "low", "high", "prompts"),
        [(v["of"], v["speedup"], v["low"], v["high"], v["prompts"]) for v in values],
    )


def _distributions(by: By, times: Sequence[Latency]) -> Iterator[Chart]:
    several = len({task for task, _ in by}) > 1
    for name, title, says in (
        ("ttft_s", "Time to first token", "Share of samples whose first token came within a time."),
        (
            "tpot_s",
            "Time per output token",
            "Share of samples whose mean time per token after the first is within a time.",
        ),
    ):
        values = [
            {"task": task, "method": method, "ms": 1000 * at, "share": share}
            for (task, method), found in by.items()
            for at, share in ecdf(getattr(found, name))
        ]
        if not values:
            continue
        dash = {"strokeDash": {"field": "task", "type": "nominal", "legend": {"orient": "top", "title": None}}}
        spec = spec_of(
            values,
            240,
            mark={"type": "line", "interpolate": "step-after", "strokeWidth": 2},
            encoding={
                "x": {
                    "field": "ms",
                    "type": "quantitative",
                    "scale": {"type": "log", "nice": False},
                    "axis": axis("ms"),
                },
                "y": {"field": "share", "type": "quantitative", "axis": axis("share of samples", format="%")},
                "color": color_by(),
                **(dash if several else {}),
            },
        )
        rows = [
            (name_of(task, method), *latency_texts(of))
            for task, method, time, of in times
            if name == f"{time}_s" and of.n
        ]
        yield Chart(name, title, says, spec, ("task and method", "n", "p50, ms", "p90, ms", "p99, ms"), rows)


def _by_exit(by: By) -> Iterator[Chart]:
    values = [
        {"of": name_of(*of), "exit": exit_layer, "drafted": drafted, "accepted": accepted, "rate": accepted / drafted}
        for of, found in by.items()
        for exit_layer, (drafted, accepted) in sorted(found.exits.items())
        if drafted
    ]
    if values:
        yield Chart(
            "exits",
            "Acceptance by exit",
            "Share of the drafts of each exit layer that verification kept; layer 0 stands for n-grams and draft models.",
            _grouped(values, "exit", "exit layer", "rate", "share accepted"),
            ("task and method", "exit layer", "drafted", "accepted", "rate"),
            [tuple(value.values()) for value in values],
        )


def _grouped(values: list[dict[str, Any]], x: str, x_title: str, y: str, y_title: str) -> dict[str, Any]:
    """Bars of `y` for each `x`, those of one task and method in one colour beside each other."""
    return spec_of(
        values,
        240,
        mark={"type": "bar", "tooltip": True},
        encoding={
            "x": {"field": x, "type": "ordinal", "axis": axis(x_title, labelAngle=0)},
            "xOffset": {"field": "of", "type": "nominal"},
            "y": {"field": y, "type": "quantitative", "axis": axis(y_title, format="%")},
            "color": color_by("of"),
        },
    )


def _by_place(by: By) -> Iterator[Chart]:
    values: list[dict[str, Any]] = []
    for of, found in by.items():
        num_rounds, drafted = int(found.num_rounds.sum()), found.drafted_by_place()
        for place, accepted in sorted(found.accepted_at.items()):
            made = None if drafted is None else drafted[place]
            share = accepted / num_rounds
            values.append(
                {"of": name_of(*of), "place": place + 1, "drafted": made, "accepted": accepted, "share": share}
            )
    if values:
        yield Chart(
            "places",
            "Acceptance by position in the round",
            "Share of all rounds that accepted their first draft, their second and so on.",
            _grouped(values, "place", "position in the round", "share", "share of rounds"),
            ("task and method", "position", "drafted there", "accepted there", "share of rounds"),
            [tuple(value.values()) for value in values],
        )


def tokens_label(tokens: int) -> str:
    """How a page names rounds that gave `tokens`."""
    return f"{tokens}" if tokens < MOST_TOKENS else f"{MOST_TOKENS} or more"


def _tokens_per_round(by: By) -> Iterator[Chart]:
    values = [
        {
            "of": name_of(*of),
            "tokens": tokens_label(idx + 1),
            "rounds": int(count),
            "share": count / found.num_rounds.sum(),
        }
        for of, found in by.items()
        if found.exits
        for idx, count in enumerate(found.num_rounds)
    ]
    if values:
        yield Chart(
            "tokens",
            "Tokens per round",
            "Share of rounds that gave one token, two and so on; a round without an accepted draft gives one.",
            _grouped(values, "tokens", "tokens that a round gave", "share", "share of rounds"),
            ("task and method", "tokens", "rounds", "share of rounds"),
            [tuple(value.values()) for value in values],
        )


def _time(by: By) -> Iterator[Chart]:
    values: list[dict[str, Any]] = []
    for of, found in by.items():
        parts = [("prefill", found.prefill_s)]
        parts += [(f"rounds of {tokens_label(idx + 1)}", float(s)) for idx, s in enumerate(found.rounds_s)]
        values += [
            {"of": name_of(*of), "part": part, "order": idx, "ms": 1000 * seconds / found.num_rows}
            for idx, (part, seconds) in enumerate(parts)
            if seconds
        ]
    if not values:
        return
    order = ["prefill", *(f"rounds of {tokens_label(idx + 1)}" for idx in range(MOST_TOKENS))]
    spec = spec_of(
        values,
        tall(values, "of", 26),
        mark={"type": "bar", "tooltip": True},
        encoding={
            "y": {"field": "of", "type": "nominal", "sort": None, "axis": names_axis()},
            "x": {"field": "ms", "type": "quantitative", "axis": axis("ms a sample")},
            "color": {
                "field": "part",
                "type": "ordinal",
                "scale": {"domain": [name for name in order if any(v["part"] == name for v in values)]},
                "legend": {"orient": "top", "title": None, "columns": 2},
            },
            "order": {"field": "order", "type": "quantitative"},
        },
    )
    yield Chart(
        "time",
        "Where the time goes",
        "Mean time a sample spends in the prefill, and in rounds by how many tokens they gave.",
        spec,
        ("task and method", "part", "ms a sample"),
        [(v["of"], v["part"], v["ms"]) for v in values],
    )


def _bars(bars: Sequence[tuple[str, str, float]]) -> Iterator[Chart]:
    if bars:
        values = [{"of": of, "what": what, "speedup": speedup} for of, what, speedup in bars]
        yield Chart(
            "ceiling",
            "Measured, predicted and possible",
            "What was measured beside what a tuning predicted, a perfect policy over the same heads, and the layers alone.",
            bars_beside(values, "speedup", "times the baseline's speed", "what"),
            ("task and method", "what", "speedup"),
            [tuple(bar) for bar in bars],
        )
