"""What `bench` prints, and the schema of the rows it stores."""

from dataclasses import asdict

import pyarrow as pa
from rich import box
from rich.table import Table

from adadecode.bench.result import BenchResult, PartTime
from adadecode.methods import METHODS, REFERENCE
from adadecode.report.cells import cell, fraction_text, number_text
from adadecode.report.foreign import foreign_text
from adadecode.settings import sampling_text

BENCH_ROWS = pa.schema(
    [
        ("method", pa.string()),
        ("width", pa.int32()),
        ("task", pa.string()),
        ("prompt_idx", pa.int32()),
        ("repeat", pa.int32()),
        ("order_idx", pa.int32()),
        ("prompt_len", pa.int32()),
        ("output_len", pa.int32()),
        ("num_rounds", pa.int32()),
        ("layers_run", pa.int32()),
        ("num_drafted", pa.int32()),
        ("num_accepted", pa.int32()),
        ("ttft_s", pa.float64()),
        ("decode_s", pa.float64()),
    ]
)


def bench_tables(result: BenchResult) -> tuple[Table, Table]:
    """The methods, and the parts of their rounds in milliseconds; `-` stands for not measured."""
    return _methods_table(result), _parts_table(result)


def bench_title(result: BenchResult) -> str:
    """What was measured where, on one line; synthetic weights are named first."""
    machine = result.machine
    name = f"{result.bench}, SYNTHETIC weights" if result.synthetic else result.bench
    threads = "" if machine.cuda else f", {machine.threads} thread{'s'[: machine.threads > 1]}"
    return f"{name}: {machine.dtype}, {machine.kernels} kernels on {machine.device}{threads}"


def bench_lines(result: BenchResult) -> list[str]:
    """The figures that belong to no row of a table."""
    memory, roofline = result.memory, result.roofline
    peak = memory.peak_device_bytes
    lines = [
        f"memory: weights {_mib(memory.weights_bytes)}, heads {_mib(memory.heads_bytes)}, "
        f"keys and values {_mib(memory.kv_bytes)}, "
        + ("" if memory.draft_model_bytes is None else f"draft model with its own {_mib(memory.draft_model_bytes)}, ")
        + ("" if memory.medusa_heads_bytes is None else f"Medusa heads {_mib(memory.medusa_heads_bytes)}, ")
        + (f"peak RSS {_mib(memory.peak_rss_bytes)}" if peak is None else f"peak on the device {_mib(peak)}"),
        f"a {REFERENCE} step reads {_mib(roofline.vanilla_step_read_bytes)}; "
        f"{'copy' if result.machine.cuda else 'read'} bandwidth "
        f"{number_text(roofline.bandwidth_bytes_per_s, '.0f', 1e-9)} GB/s, roofline "
        f"{number_text(roofline.vanilla_tokens_per_s, '.1f')} tokens/s",
    ]
    if (drawn := sampling_text(result.settings)) is not None:
        lines.append(f"outputs are drawn: {drawn}")
    if (foreign := foreign_text(asdict(result.machine))) is not None:
        lines.append(foreign)
    if result.never_fires_cost is not None:
        lines.append(
            f"exits that never fire: {result.never_fires_cost:.3f} of {REFERENCE}'s time at W {result.machine.width}"
        )
    owing = {name: row for name, row in result.methods.items() if METHODS[name].owes == "exact" and row.num_prompts}
    broken = {name: row for name, row in owing.items() if not row.is_exact}
    lines += [
        f"parity {result.parity}: {name}'s tokens are {REFERENCE}'s on {row.num_parity_exact}/{row.num_prompts} prompts, "
        f"its logits on {row.num_logits_equal}/{row.num_prompts}"
        for name, row in (broken or owing).items()
    ]
    return lines


def _methods_table(result: BenchResult) -> Table:
    columns = (
        "method",
        "W",
        "tokens/s\n(min-max)",
        "ms/round",
        "rounds",
        "tokens\n/round",
        "layers\n/token",
        "accept\nrate",
        "speed\nup",
        "per\nprompt",
        "parts\nms/round",
        "host\nms/round",
        "ceiling\ntokens/s",
        "of\nceiling",
        "of\nroofline",
        "same\ntokens",
    )
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=cell(bench_title(result)), title_justify="left"
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, row in result.methods.items():
        spread = f" ({number_text(row.tokens_per_s_min, '.1f')}-{number_text(row.tokens_per_s_max, '.1f')})"
        table.add_row(
            f"{method}\n(lossy)" if row.is_lossy else method,
            number_text(row.width, "d"),
            number_text(row.tokens_per_s, ".1f") + spread,
            number_text(row.ms_per_round, ".3f"),
            number_text(row.num_rounds, "d"),
            number_text(row.tokens_per_round, ".2f"),
            number_text(row.layers_per_token, ".2f"),
            number_text(row.acceptance_rate, ".1%"),
            number_text(row.speedup_over_faster_vanilla, ".2f"),
            number_text(row.speedup_geomean, ".2f"),
            number_text(row.parts_ms_per_round, ".3f"),
            number_text(row.host_overhead_ms_per_round, ".3f"),
            number_text(row.ceiling_tokens_per_s, ".1f"),
            number_text(row.ceiling_share, ".0%"),
            number_text(row.roofline_share, ".0%"),
            fraction_text(row.num_parity_exact, row.num_prompts or None),
        )
    return table


def _parts_table(result: BenchResult) -> Table:
    """One line per part, one column per number of rows."""
    parts: dict[tuple[int, str], dict[int, float]] = {}
    for part in result.parts:
        parts.setdefault((part.width, _part_name(part)), {})[part.rows] = part.ms
    all_rows = sorted({rows for times in parts.values() for rows in times})
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title="parts, ms each alone", title_justify="left")
    table.add_column("part", justify="left", no_wrap=True)
    table.add_column("W", justify="right", no_wrap=True)
    for rows in all_rows:
        table.add_column(f"{rows} row" + ("s" if rows > 1 else ""), justify="right", no_wrap=True)
    for (width, name), times in parts.items():
        table.add_row(name, str(width), *(number_text(times.get(rows), ".3f") for rows in all_rows))
    return table


def _part_name(part: PartTime) -> str:
    match part.part:
        case "enter":
            return "embedding and control"
        case "layers":
            assert part.layers is not None, part
            return f"layers {part.layers[0] + 1}-{part.layers[1]}"
        case "test":
            return f"{part.head}{'' if part.head == 'gate' else ' head'} at {part.exit_layer}"
        case "verify":
            return "verify"


def _mib(num_bytes: int) -> str:
    return f"{number_text(num_bytes, '.1f', 2**-20)} MiB"
