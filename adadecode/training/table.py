"""What `train-heads` prints: how good each exit's head is, and what a gamma would draft with it."""

from typing import Any

from rich import box
from rich.table import Table

from adadecode.report.cells import number_text


def heads_table(training: dict[str, Any]) -> Table:
    """A rich table with one line per head: agreement with the final argmax and KL, then draft rate over gamma.

    `training` is what exit_heads.json holds under that name; all figures are of held-out prompts. A cell such as
    `31 % / 0.94` says that 31 % of the tokens would be drafted and 94 % of those accepted.
    """
    gammas = (0.5, 0.75, 0.9, 0.95)
    place = "ahead" if training["settings"]["kind"] == "medusa" else "exit"
    caption = f"{training['num_held_out_tokens']} held-out tokens"
    if place == "exit":
        caption += (
            f"; mean top-1 probability of the final layer {training['mean_top1_probability']:.2f}; a perfect policy runs "
            f"{training['oracle_layers_per_token']:.2f} layers per token"
        )
    table = Table(place, "agree", "KL", *(f"γ {gamma:g}" for gamma in gammas), caption=caption, box=box.SIMPLE_HEAD)
    for exit_layer, agreement in training["agreement"].items():
        cells = {row["gamma"]: row for row in training["gamma_table"] if row["exit"] == int(exit_layer)}
        table.add_row(
            exit_layer,
            f"{agreement:.1%}",
            f"{training['held_out_kl'][exit_layer]:.2f}",
            *(f"{cells[g]['draft_rate']:.0%} / {number_text(cells[g]['precision'], '.2f')}" for g in gammas),
        )
    return table
