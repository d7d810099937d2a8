"""One generation on a terminal: its text coloured by draft depth, and its statistics."""

from itertools import groupby
from typing import Any

from rich.text import Text

from adadecode.printable import printable
from adadecode.records import Generation

DEPTH_STYLES = ("bold green", "green", "cyan", "blue", "magenta")  # from the shallowest exit on


def coloured_text(generation: Generation, tokenizer: Any, num_layers: int) -> Text:
    """The output text, tokens drafted at an exit in that exit's colour, the full model's plain; then a legend."""
    styles = dict(zip(generation.exits, DEPTH_STYLES * len(generation.exits), strict=False))
    text, end, shown_len = Text(), 0, 0
    for depth, run in groupby(generation.draft_depths):
        end += len(list(run))
        # The text so far, less what was shown: a run decoded alone loses its leading space, or half a character.
        whole = tokenizer.decode(generation.output_token_ids[:end], skip_special_tokens=True)
        if end < len(generation.output_token_ids):
            whole = whole.rstrip("\ufffd")
        text.append(printable(whole[shown_len:], keep="\n\t"), styles.get(depth))
        shown_len = max(shown_len, len(whole))
    text.append("\n\ndrafted at layer ")
    for exit_layer, style in styles.items():
        text.append(f"{exit_layer} ", style)
    return text.append(f"or given by all {num_layers}")


def statistics_lines(method: str, generation: Generation) -> list[str]:
    """Speed and drafting of one generation, a fact a line."""
    num_tokens = len(generation.output_token_ids)
    lines = [
        f"{method}: {num_tokens} tokens in {generation.e2e_s:.3f} s ({num_tokens / generation.e2e_s:.1f} tokens/s), "
        f"TTFT {generation.ttft_s * 1e3:.1f} ms, TPOT {_ms(generation.tpot_s)}, finish reason {generation.finish_reason}"
    ]
    if generation.exits:
        per_exit = zip(generation.exits, generation.accepted_per_exit, generation.drafted_per_exit, strict=True)
        counts = ", ".join(f"layer {e}: {accepted}/{drafted}" for e, accepted, drafted in per_exit)
        layers = "-" if generation.layers_per_token is None else f"{generation.layers_per_token:.2f}"
        lines.append(f"  {generation.num_rounds} rounds, {layers} layers per token, accepted/drafted {counts}")
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"
