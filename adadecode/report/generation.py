"""One generation on a terminal: its text coloured by draft depth, and its statistics."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from adadecode.printable import printable
from adadecode.records import Generation

DEPTH_STYLES = ("bold green", "green", "cyan", "blue", "magenta")  # from the shallowest exit on


def coloured_text(generation: Generation, tokenizer: Any, num_layers: int) -> Text:
    """The output text, tokens drafted at an exit in that exit's colour, the full model's plain; then a legend."""
    styles = depth_styles(generation.exits)
    text, end, shown_len = Text(), 0, 0
    for depth, run in groupby(generation.draft_depths):
        end += len(list(run))
        # The text so far, less what was shown: a run decoded alone loses its leading space, or half a character.
        whole = tokenizer.decode(generation.output_token_ids[:end], skip_special_tokens=True)
        if end < len(generation.output_token_ids):
            whole = whole.rstrip("\ufffd")
        text.append(printable(whole[shown_len:], keep="\n\t"), styles.get(depth))
        shown_len = max(shown_len, len(whole))
    return text.append("\n\n").append_text(legend(generation.exits, num_layers))


def depth_styles(exits: Sequence[int]) -> dict[int, str]:
    """The style of what each of `exits` drafted; the full model's tokens are plain."""
    return dict(zip(exits, DEPTH_STYLES * len(exits), strict=False))


def legend(exits: Sequence[int], num_layers: int) -> Text:
    """Which colour stands for which depth."""
    text = Text("drafted at layer ")
    for exit_layer, style in depth_styles(exits).items():
        text.append(f"{exit_layer or '0 (n-grams)'} ", style)
    return text.append(f"or given by all {num_layers}")


def answer_line(generation: Generation, num_layers: int) -> str:
    """What one answer of a conversation took, on a line."""
    num_tokens = len(generation.output_token_ids)
    told = [f"{num_tokens} token{'s' if num_tokens != 1 else ''}", f"{num_tokens / generation.e2e_s:.1f} tokens/s"]
    if generation.num_drafted:
        told.append(f"{generation.num_accepted / generation.num_drafted:.0%} of drafts accepted")
    if (layers := generation.layers_per_token) is not None:
        told.append(f"{layers:.2f} of {num_layers} layers per token ({num_layers / layers:.2f}x fewer)")
    told.append(f"TTFT {generation.ttft_s * 1e3:.1f} ms")
    return ", ".join(told) + (", cut at the limit" if generation.finish_reason == "length" else "")


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
