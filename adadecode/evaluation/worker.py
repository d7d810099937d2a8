"""One worker: a model loaded once, and the evaluation of one shard with every method of the run."""

import functools
import logging
import os
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from adadecode.engine.generate import Decoded, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy, make_policy, paper_exits, step_width
from adadecode.engine.transformers import generate_with_transformers
from adadecode.evaluation.compare import compare, logits_digest
from adadecode.evaluation.failures import Failure, broken_devices_named, result_or_failure
from adadecode.methods import METHODS, any_needs_heads, in_turn
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads, load_heads, original_heads
from adadecode.model.load import chat_template_hash, load_model
from adadecode.provenance import cpu_name, gpu_driver
from adadecode.records import Example, Shard
from adadecode.settings import BenchConfig, EvalConfig
from adadecode.tasks import score
from adadecode.tasks.encode import encode_prompt
from adadecode.tasks.heads import heads_folder

log = logging.getLogger(__name__)

WARMUP_TOKENS = 16

# What a row keeps when it becomes an error's: which it is, when it began and the prompt, if that was made.
ERROR_ROW_COLUMNS = ("method", "lossy", "order_idx", "started_at", "prompt_len", "prompt_token_ids")


@dataclass(frozen=True)
class Worker:
    """What stays loaded between shards."""

    worker_id: str
    config: EvalConfig
    model: DecoderModel
    tokenizer: Any
    heads: dict[str, ExitHeads]  # per task
    width: int

    def facts(self) -> dict[str, Any]:
        """What only the worker knows of where and with what it ran; stored with every commit."""
        gpu = torch.cuda.get_device_name() if self.config.device == "cuda" else None
        return {
            "worker_id": self.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cpu": cpu_name(),
            "gpu": gpu,
            "gpu_driver": gpu_driver() if gpu else None,
            "cuda": torch.version.cuda if gpu else None,
            "threads": torch.get_num_threads(),
            "kernels": self.model.kernels,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "width": self.width,
            "model_hash": self.model.model_hash,
            "model_commit": getattr(self.model.config, "_commit_hash", None),  # of a hub model
            "heads_hash": {task: heads.content_hash for task, heads in self.heads.items()},
            "exits": {task: list(self.policy(task).exits) for task in self.heads},
            "chat_template_hash": chat_template_hash(self.tokenizer),
        }

    def policy(self, task: str) -> Policy:
        return make_policy(self.config.decode, self.heads[task].exits, self.model.num_layers)


@broken_devices_named()
def load_worker(config: EvalConfig, tasks: tuple[str, ...], worker_id: str, threads: int | None) -> Worker:
    """Loads model and heads, checks that rows are independent at this width, and warms every method up."""
    started = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    model, tokenizer = load_model(config)
    drafts = any_needs_heads(config.methods)
    heads = {task: heads_for(config, task, model) for task in tasks} if drafts else {}
    width = step_width(config.decode.max_drafts)
    worker = Worker(worker_id, config, model, tokenizer, heads, width)
    for task in heads:
        worker.policy(task)  # an exit without a head is refused before anything is measured
    check_rows_independent(model, width)
    warmup_ids = [i % model.vocab_size for i in range(1, min(17, model.context_len))]
    for task in tasks:
        for method in config.methods * config.warmup:
            decode(worker, method, task, warmup_ids, max_new_tokens=WARMUP_TOKENS)
    log.info(
        "loaded and warmed up %s in %.1f s, %s kernels", config.model, time.perf_counter() - started, model.kernels
    )
    return worker


def heads_for(config: EvalConfig | BenchConfig, task: str, model: DecoderModel) -> ExitHeads:
    """The heads `config` says for `task`; the original ones are at the policy's exits, else the paper's."""
    folder, decode = heads_folder(config, task), config.decode
    if folder is None:
        return original_heads(model, decode.exits or paper_exits(model.num_layers))
    return load_heads(folder, model, decode.head, decode.gate)


def decode(worker: Worker, method: str, task: str, prompt_ids: list[int], max_new_tokens: int | None = None) -> Decoded:
    """One generation of `prompt_ids` by `method`."""
    config, model = worker.config, worker.model
    max_new_tokens = max_new_tokens or config.decode.max_new_tokens
    record = config.check_logits
    if method == "transformers":
        return generate_with_transformers(model, prompt_ids, max_new_tokens=max_new_tokens, record_logits=record)
    drafting: dict[str, Any] = {}
    if METHODS[method].exits:
        drafting = {"policy": worker.policy(task), "drafter": worker.heads[task]}
    return generate(
        model,
        prompt_ids,
        width=METHODS[method].step_width(worker.width) or worker.width,
        max_new_tokens=max_new_tokens,
        verified=METHODS[method].verified,
        record_logits=record,
        **drafting,
    )


def evaluate_shard(worker: Worker, shard: Shard) -> list[dict[str, Any]]:
    """The rows of all samples of `shard`, as `evaluate_sample` gives them."""
    log.info("started: %d samples, methods %s", len(shard.examples), ", ".join(worker.config.methods))
    return [row for sample_idx in range(len(shard.examples)) for row in evaluate_sample(worker, shard, sample_idx)]


def evaluate_sample(worker: Worker, shard: Shard, sample_idx: int) -> list[dict[str, Any]]:
    """One row per repeat and method, as the SAMPLES schema has them less `run_id` and `attempt`.

    A failure is a row with its error.
    """
    example = shard.examples[sample_idx]
    rows = []
    for repeat in range(worker.config.repeats):
        methods = in_turn(worker.config.methods, shard.shard_idx + sample_idx + repeat)
        common = {
            "task": shard.task,
            "sample_id": example.sample_id,
            "repeat": repeat,
            "shard": shard.shard_idx,
            "reference": example.reference,
            "worker_id": worker.worker_id,
        }
        rows += [{**common, **row} for row in _evaluate_sample(worker, shard.task, example, methods)]
    return rows


def _evaluate_sample(worker: Worker, task: str, example: Example, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of one sample, one for each of `methods`, which are run in this order; a failure ends only its own."""
    rows: dict[str, dict[str, Any]] = {}
    decoded: dict[str, Decoded] = {}
    for order_idx, method in enumerate(methods):
        rows[method] = {"method": method, "lossy": METHODS[method].is_lossy, "order_idx": order_idx}
        measure = functools.partial(_measure, worker, method, task, example, rows[method])
        result = result_or_failure(f"{task}/{example.sample_id} {method}", measure, worker.model)
        if isinstance(result, Failure):
            rows[method] = _error_row(rows[method], result)
        else:
            decoded[method] = result
    for method, result in decoded.items():
        if method != "vanilla" and "vanilla" in decoded:
            check = functools.partial(compare, decoded["vanilla"], result, worker.config.dtype)
            parity = result_or_failure(
                f"{task}/{example.sample_id} {method}, compared with vanilla", check, worker.model
            )
            rows[method] = _error_row(rows[method], parity) if isinstance(parity, Failure) else rows[method] | parity
    return list(rows.values())


def _measure(worker: Worker, method: str, task: str, example: Example, row: dict[str, Any]) -> Decoded:
    """The generation of `example` by `method`; writes to `row` when it began, the prompt, and at its end the rest."""
    row["started_at"] = datetime.now(UTC)
    prompt_ids = encode_prompt(worker.tokenizer, example)
    row |= {"prompt_len": len(prompt_ids), "prompt_token_ids": prompt_ids}
    decoded = decode(worker, method, task, prompt_ids)
    row |= {"status": "ok", **_measurements(worker, method, task, example, decoded)}
    return decoded


def _error_row(row: dict[str, Any], failure: Failure) -> dict[str, Any]:
    """`row` with the error in place of what was measured."""
    return {name: row[name] for name in ERROR_ROW_COLUMNS if name in row} | failure.columns()


def _measurements(worker: Worker, method: str, task: str, example: Example, decoded: Decoded) -> dict[str, Any]:
    """The columns of a generation that succeeded; drafting columns are null for methods that cannot draft."""
    generation = decoded.generation
    ended = generation.finish_reason == "eos"
    shown_ids = generation.output_token_ids[: -1 if ended else None]
    text = worker.tokenizer.decode(shown_ids)
    drafting = {
        "num_drafted": generation.num_drafted,
        "num_accepted": generation.num_accepted,
        "exits": generation.exits,
        "drafted_per_exit": generation.drafted_per_exit,
        "accepted_per_exit": generation.accepted_per_exit,
        "draft_depths": generation.draft_depths,
    }
    return {
        "output_len": len(generation.output_token_ids),
        "output_token_ids": generation.output_token_ids,
        "output_text": text,
        "finish_reason": generation.finish_reason,
        "correct": score(task, text, example.reference),
        "ttft_s": generation.ttft_s,
        "decode_s": generation.decode_s,
        "e2e_s": generation.e2e_s,
        "tpot_s": generation.tpot_s,
        "step_gaps_s": generation.step_gaps_s,
        "num_rounds": generation.num_rounds,
        "layers_per_token": generation.layers_per_token,
        "logits_digest": logits_digest(decoded.logits),
        "width": METHODS[method].step_width(worker.width),
        **(drafting if METHODS[method].drafts else {}),
    }
