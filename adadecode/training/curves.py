"""Loss and agreement over a training: a table for machines and a picture for people."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.files import whole_file
from adadecode.records import Say

CURVES, PICTURE = "curves.parquet", "curves.svg"

# One row per point, exit (of Medusa heads: how many tokens ahead one looks) and split. `epoch` counts passes over the
# training outputs, with their fraction; `kl`, in nats, and `agreement` with the final argmax are means, of the positions
# since the last point for `train`; `num_tokens` are the positions trained on so far.
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.float64()),
        ("exit", pa.int32()),
        ("split", pa.string()),
        ("kl", pa.float64()),
        ("agreement", pa.float64()),
        ("learning_rate", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)


def write_curves(out: Path, points: list[dict[str, Any]], say: Say) -> None:
    """Writes `points`, rows of SCHEMA, to `out` as a table, and as a picture where matplotlib is installed."""
    with whole_file(out / CURVES) as unfinished:
        pq.write_table(pa.Table.from_pylist(points, schema=SCHEMA), unfinished, compression="zstd")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        say(f"{PICTURE} is not drawn: matplotlib is not installed; pip install 'adadecode[report]'")
        return
    exits = sorted({point["exit"] for point in points})
    with matplotlib.rc_context({"svg.hashsalt": "adadecode"}):  # the same curves give the same file
        figure = Figure(figsize=(10.0, 4.0), layout="constrained")
        for axes, name, label in zip(
            figure.subplots(1, 2), ("kl", "agreement"), ("KL (nats)", "agreement"), strict=True
        ):
            for idx, exit_layer in enumerate(exits):
                for split, style in (("train", "-"), ("held_out", "o--")):
                    drawn = [point for point in points if (point["exit"], point["split"]) == (exit_layer, split)]
                    axes.plot(
                        [point["epoch"] for point in drawn],
                        [point[name] for point in drawn],
                        style,
                        color=f"C{idx}",
                        markersize=4,
                        label=f"exit {exit_layer}, {split.replace('_', ' ')}",
                    )
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        figure.axes[0].legend(fontsize="small")
        with whole_file(out / PICTURE) as unfinished:
            figure.savefig(unfinished, format="svg", metadata={"Date": None})
