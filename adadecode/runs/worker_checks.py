"""What a worker stores of itself and its model, against the rows it made and the settings it was given."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adadecode.report.draft_checks import model_layers
from adadecode.report.findings import Columns, Wrong, any_value
from adadecode.settings import sampling_text

Facts = Mapping[str, Any]  # of a worker


def other_settings(facts: Facts, run: Mapping[str, Any], task: Any) -> list[str]:
    """The settings in the run.json `run` that a worker did not have at `task`, of those that both store."""
    config, of_tasks = run["config"], facts.get("exits")
    kernels, exits = config.get("kernels"), _decode_settings(run).get("exits")
    device = None if "gpu" not in facts else "cpu" if facts["gpu"] is None else "cuda"
    pairs = {
        "device": (device, config.get("device")),
        "dtype": (facts.get("dtype"), config.get("dtype")),
        "kernels": (facts.get("kernels"), None if kernels == "auto" else kernels),
        "sampling": (facts.get("sampling"), sampling_text(config)),
        "exits": (of_tasks.get(task) if isinstance(of_tasks, dict) else None, exits or None),
    }
    return [name for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]]


def against_model(facts: Facts, run: Mapping[str, Any], columns: Columns) -> Iterator[Wrong]:
    """What the rows of a worker have that its model cannot have given, under the settings of the run.json `run`."""
    num_layers, context_len, eos_ids = (facts.get(name) for name in ("num_layers", "context_len", "eos_token_ids"))
    if isinstance(num_layers, int):
        for name, most in (("exits", num_layers - 1), ("draft_depths", num_layers)):
            layers, of_row = columns.values(name)
            yield f"{name} are past the model's layers", any_value(layers > most, of_row, columns)
        found = model_layers(columns)
        yield "the layers of the rows' model are not those of the worker's", columns.is_ok & (found < num_layers)
    if isinstance(context_len, int):
        total = columns.numbers("prompt_len") + columns.numbers("output_len")
        yield "prompt and output are longer than the model's context", columns.is_ok & (total > context_len)
        max_new_tokens = _decode_settings(run).get("max_new_tokens")
        if isinstance(max_new_tokens, int):
            is_cut = columns.equal("finish_reason", "length") & (columns.numbers("output_len") < max_new_tokens)
            yield "finish_reason is length, but there was room for more", is_cut & (total < context_len)
    if isinstance(eos_ids, list):
        ids, of_token = columns.values("output_token_ids")
        is_last = np.append(np.diff(of_token) != 0, True)[: len(ids)]
        is_eos = np.isin(ids, np.array(eos_ids, float))
        yield "the output goes on after an EOS of the model", any_value(is_eos & ~is_last, of_token, columns)
        ended = any_value(is_eos & is_last, of_token, columns)
        yield "finish_reason is eos, but the output does not end in one", columns.equal("finish_reason", "eos") & ~ended
        for reason in ("length", "stop"):
            yield (
                f"finish_reason is {reason}, but the output ends in EOS",
                columns.equal("finish_reason", reason) & ended,
            )
        drafts, of_draft = columns.values("rejected", "token_id")
        is_end = np.isin(drafts, np.array(eos_ids, float))
        yield "rejected has an EOS of the model, which nothing drafts", any_value(is_end, of_draft, columns)


def _decode_settings(run: Mapping[str, Any]) -> Mapping[str, Any]:
    found = run["config"].get("decode")
    return found if isinstance(found, dict) else {}
