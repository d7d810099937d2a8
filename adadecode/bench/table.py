"""What `bench` prints, and the schema of the rows it stores."""

from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table

ABSENT = "-"

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


def bench_tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """The methods, and the parts of their rounds in milliseconds; `-` stands for not measured."""
    return _methods_table(result), _parts_table(result)


def bench_title(result: dict[str, Any]) -> str:
    """What was measured where, on one line; synthetic weights are named first."""
    machine = result["machine"]
    name = f"{result['bench']}, SYNTHETIC weights" if result["synthetic"] else result["bench"]
    threads = "" if machine["cuda"] else f", {machine['threads']} thread{'s'[: machine['threads'] > 1]}"
    return f"{name}: {machine['dtype']}, {machine['kernels']} kernels on {machine['device']}{threads}"


def bench_lines(result: dict[str, Any]) -> list[str]:
    """The figures that belong to no row of a table."""
    memory, roofline = result["memory"], result["roofline"]
    peak = memory["peak_device_bytes"]
    lines = [
        f"memory: weights {_mib(memory['weights_bytes'])}, heads {_mib(memory['heads_bytes'])}, "
        f"keys and values {_mib(memory['kv_bytes'])}, "
        + (f"peak RSS {_mib(memory['peak_rss_bytes'])}" if peak is None else f"peak on the device {_mib(peak)}"),
        f"a vanilla step reads {_mib(roofline['vanilla_step_read_bytes'])}; copy bandwidth "
        f"{_number(roofline['copy_bandwidth_bytes_per_s'], '.0f', 1e-9)} GB/s, roofline "
        f"{_number(roofline['vanilla_tokens_per_s'], '.1f')} tokens/s",
    ]
    if result["never_fires_cost"] is not None:
        lines.append(f"exits that never fire: {result['never_fires_cost']:.3f} of vanilla's time at W {_width(result)}")
    if result["parity"] is not None:
        exact = result["methods"]["adadecode"]
        lines.append(
            f"parity {result['parity']}: adadecode's tokens are vanilla's on {exact['num_parity_exact']}/"
            f"{exact['num_prompts']} prompts, its logits on {exact['num_logits_equal']}/{exact['num_prompts']}"
        )
    return lines


def _methods_table(result: dict[str, Any]) -> Table:
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
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=bench_title(result), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, row in result["methods"].items():
        name = f"{method}\n(lossy)" if row["is_lossy"] else method
        spread = f" ({_number(row['tokens_per_s_min'], '.1f')}-{_number(row['tokens_per_s_max'], '.1f')})"
        table.add_row(
            name,
            _number(row["width"], "d"),
            _number(row["tokens_per_s"], ".1f") + spread,
            _number(row["ms_per_round"], ".3f"),
            _number(row["num_rounds"], "d"),
            _number(row["tokens_per_round"], ".2f"),
            _number(row["layers_per_token"], ".2f"),
            _number(row["acceptance_rate"], ".1%"),
            _number(row["speedup_over_faster_vanilla"], ".2f"),
            _number(row["speedup_geomean"], ".2f"),
            _number(row["parts_ms_per_round"], ".3f"),
            _number(row["host_overhead_ms_per_round"], ".3f"),
            _number(row["ceiling_tokens_per_s"], ".1f"),
            _number(row["ceiling_share"], ".0%"),
            _number(row["roofline_share"], ".0%"),
            f"{row['num_parity_exact']}/{row['num_prompts']}",
        )
    return table


def _parts_table(result: dict[str, Any]) -> Table:
    """One line per part, one column per number of rows."""
    parts: dict[tuple[int, str], dict[int, float]] = {}
    for part in result["parts"]:
        parts.setdefault((part["width"], _part_name(part)), {})[part["rows"]] = part["ms"]
    all_rows = sorted({rows for times in parts.values() for rows in times})
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title="parts, ms each alone", title_justify="left")
    table.add_column("part", justify="left", no_wrap=True)
    table.add_column("W", justify="right", no_wrap=True)
    for rows in all_rows:
        table.add_column(f"{rows} row" + ("s" if rows > 1 else ""), justify="right", no_wrap=True)
    for (width, name), times in parts.items():
        table.add_row(name, str(width), *(_number(times.get(rows), ".3f") for rows in all_rows))
    return table


def _part_name(part: dict[str, Any]) -> str:
    match part["part"]:
        case "enter":
            return "embedding and control"
        case "layers":
            start, stop = part["layers"]
            return f"layers {start + 1}-{stop}"
        case "test":
            return f"{part['head']}{'' if part['head'] == 'gate' else ' head'} at {part['exit_layer']}"
    return "verify"


def _width(result: dict[str, Any]) -> int:
    return result["machine"]["width"]


def _mib(num_bytes: int | None) -> str:
    return f"{_number(num_bytes, '.1f', 2**-20)} MiB"


def _number(value: float | None, form: str, scale: float = 1) -> str:
    if value is None:
        return ABSENT
    return format(value if form == "d" else value * scale, form)
