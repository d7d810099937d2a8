"""The flags that commands share, in groups, and what their texts stand for.

No flag has a default of its own: what is not given comes from --config, then from the settings' defaults.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def integers(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} must be whole numbers with commas, such as 4,8,12") from None


def gammas(_: click.Context, parameter: click.Parameter, text: str | None) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    try:
        gammas = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} must be a number or one per exit with commas, such as 0.5,0.6") from None
    return gammas if len(gammas) != 1 else gammas[0]


def workers(_: click.Context, parameter: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} must be a whole number from 1 or `auto`") from None


def names(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


Flag = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*flags: Flag) -> Flag:
    return lambda function: functools.reduce(lambda decorated, flag: flag(decorated), reversed(flags), function)


model_flags = together(
    click.option("--model", help="`demo`, a folder with a transformers model, or a hub id.  [default: demo]"),
    click.option("--revision", help="Revision of a model on the hub."),
    click.option("--dtype", help="float32, bfloat16 or float16.  [default: bfloat16]"),
    click.option("--device", help="cpu or cuda.  [default: cpu]"),
    click.option("--threads", type=int, help="CPU threads per worker.  [default: cores // workers]"),
    click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML."),
)
kernel_flags = together(
    click.option("--kernels", help="auto, native (CPU, needs a C++ compiler), eager or compile.  [default: auto]"),
    click.option("--compile", "kernels", flag_value="compile", help="The same as --kernels compile."),
)
data_flags = together(
    click.option("--task", help="See `adadecode tasks`.  [default: demo, both embedded prompt sets]"),
    click.option("--data-file", help=".jsonl, .jsonl.gz or .parquet instead of the hub."),
    click.option("--prompt-field", help="Column of the prompt, for --task jsonl.  [default: prompt]"),
    click.option("--offset", type=int, help="Leave out the first N samples of each task.  [default: 0]"),
    click.option("--limit", type=int, help="Only the first N samples of each task, after --offset."),
)
policy_flags = together(
    click.option("--heads", help="Folder of exit heads, or `original`: the LM head.  [default for demo: its own]"),
    click.option("--policy", help="paper, demo or a YAML file; other flags win.  [default: demo for the demo model]"),
    click.option("--head", help="What an exit test runs: full or shortlist.  [default: full]"),
    click.option(
        "--gate", type=float, help="Skip tests that pass with less probability; 0 tests always.  [default: 0]"
    ),
    click.option("--reject", type=float, help="Confidence at which a deeper head rejects a draft.  [default: never]"),
    click.option("--ngram", type=float, help="Threshold of n-gram drafts in [0, 1).  [default: no n-gram drafts]"),
    click.option("--max-new-tokens", type=int, help="[default: 512]"),
)
decode_flags = together(
    policy_flags,
    click.option("--gamma", callback=gammas, help="Exit threshold in [0, 1], or one per exit.  [default: 0.75]"),
    click.option(
        "--exits", callback=integers, help="Exit layers, such as 4,8,12.  [default: the paper's, L/4, L/2, 3L/4]"
    ),
    click.option("--max-drafts", type=int, help="Drafts pending at once.  [default: 5]"),
)
run_flags = together(
    click.option(
        "--methods",
        callback=names,
        help="[default: vanilla,vanilla-w1,adadecode; also: transformers, adadecode-unverified (lossy)]",
    ),
    click.option("--repeats", type=int, help="Measurements of each sample and method.  [default: 1]"),
    click.option("--warmup", type=int, help="Generations per method and worker that are not recorded.  [default: 1]"),
    click.option("--shard-size", type=int, help="Samples committed together.  [default: 4]"),
    click.option("--check-logits/--no-check-logits", default=None, help="Compare logit bits too.  [default: yes]"),
    click.option("--max-errors", help="Samples that may fail before the run stops, N or P%.  [default: 5%]"),
    click.option(
        "--workers",
        callback=workers,
        help="Ray actors: one GPU each, or an equal share of the CPUs; `auto`: as many as the cluster holds, also later.  "
        "[default: 1]",
    ),
    click.option("--local", is_flag=True, default=None, help="In this process, without Ray."),
    click.option("--retry-errors", is_flag=True, default=None, help="Compute shards with failed samples again."),
    click.option("--address", help="Ray cluster to join.  [default: RAY_ADDRESS, else one on this machine]"),
    click.option(
        "--deadline",
        "deadline_s",
        type=float,
        help="Least seconds a shard may take before its worker counts as hung; more by measured rates.  [default: 60]",
    ),
    click.option("--grace", "grace_s", type=float, help="Seconds for shards in flight after Ctrl-C.  [default: 20]"),
)
