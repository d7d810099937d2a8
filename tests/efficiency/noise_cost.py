"""What drawing costs a verification by native kernels: greedy against T, top-p, top-k and min-p, taken in turns.

Prints one JSON object per number of rows and setting: milliseconds of a verification (median and least over rounds), and
how much more than greedy's it is, as the median of the rounds' ratios. A round takes each setting once, so that a
slow moment is all's.

    python tests/efficiency/noise_cost.py --threads 2
"""

import json
import statistics
import time
from collections.abc import Callable

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep
from adadecode.model.decoder import DecoderModel

MAX_SHARE = 0.03
SETTINGS: dict[str, Draw | None] = {
    "greedy": None,
    "greedy again": None,
    "T=0.7": Draw(0.7, key=1),
    "T=1.0": Draw(1.0, key=1),
    "T=0.7 top-p 0.9": Draw(0.7, top_p=0.9, key=1),
    "T=1.0 top-p 0.9": Draw(1.0, top_p=0.9, key=1),
    "T=0.7 top-k 50": Draw(0.7, top_k=50, key=1),
    "T=1.0 top-k 50": Draw(1.0, top_k=50, key=1),
    "T=0.7 min-p 0.05": Draw(0.7, min_p=0.05, key=1),
    "T=1.0 min-p 0.05": Draw(1.0, min_p=0.05, key=1),
}


def model_of(width: int, vocab_size: int) -> DecoderModel:
    """A decoder of random weights in bfloat16, of one small layer and a whole LM head."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return DecoderModel(LlamaForCausalLM(config).to(torch.bfloat16).eval(), "native")


def seconds(step: DecodeStep, draw: Draw | None, num_rows: int, position: int, clock: Callable[[], float]) -> float:
    step.draw_by(draw)
    step.begin(position)
    began = clock()
    step.verify(0, num_rows)
    return clock() - began


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--width", default=2048, show_default=True, help="d; a small one tells what drawing costs alone.")
@click.option("--vocab", default=128_256, show_default=True)
@click.option("--rows", default="1,4", show_default=True)
@click.option("--spread", default=3.0, show_default=True, help="Standard deviation of the logits: 1 is nearly flat.")
@click.option("--rounds", default=60, show_default=True)
@torch.inference_mode()
def main(threads: int, width: int, vocab: int, rows: str, spread: float, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock = time.thread_time if threads == 1 else time.perf_counter  # a busy machine's other work is not of this thread
    model = model_of(width, vocab)
    step = model.new_step(8, 32)
    step.hidden.normal_()
    step.verify(0, 1)
    model.weights.norm.mul_(spread / step.logits[0].float().std())
    for num_rows in map(int, rows.split(",")):
        took: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for idx in range(rounds + 2):
            for name, draw in SETTINGS.items():
                took[name].append(seconds(step, draw, num_rows, idx % 16, clock))
        for name, times in took.items():
            ratios = [time_s / greedy_s for time_s, greedy_s in zip(times[2:], took["greedy"][2:], strict=True)]
            share = statistics.median(ratios) - 1
            print(
                json.dumps(
                    {
                        "rows": num_rows,
                        "draw": name,
                        "ms": round(1e3 * statistics.median(times[2:]), 3),
                        "least_ms": round(1e3 * min(times[2:]), 3),
                        "more": round(share, 4),
                        "passes": share <= MAX_SHARE,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
