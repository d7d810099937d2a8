"""One worker: a model loaded once, and the evaluation of one shard with every method of the run."""

import functools
import logging
import os
import socket
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.draft_model import check_draft_model
from adadecode.engine.generate import Request, room_for_output
from adadecode.engine.invariance import NUM_POSITIONS, check_rows_once
from adadecode.engine.policy import Policy, make_policy
from adadecode.engine.sampling import draw_of
from adadecode.engine.stop_strings import StopStrings
from adadecode.engine.tally import Decoded
from adadecode.evaluation.compare import compare, logits_digest
from adadecode.evaluation.failures import Failure, result_or_failure
from adadecode.evaluation.heads import heads_for, medusa_by_task
from adadecode.evaluation.rows import SampleRow, Turn, turns, unanswered_rows
from adadecode.evaluation.start_up import WARM_UP, StartUp, start_up_lines
from adadecode.kernels.arithmetic import arithmetic
from adadecode.methods import METHODS, REFERENCE, Method
from adadecode.model.decoder import DecoderModel
from adadecode.model.draft_model import load_draft_model
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.foreign import foreign_facts
from adadecode.model.load import LoadModel, chat_template_hash, load_model, use_threads
from adadecode.model.machine_kind import MachineKind, gpu_names, tuned_elsewhere
from adadecode.model.medusa_heads import MedusaHeads
from adadecode.model.memory import broken_devices_named, out_of_memory_named
from adadecode.provenance import code_hash, cpu_name, gpu_driver
from adadecode.records import Shard
from adadecode.settings import EvalConfig, drawn_otherwise, sampling_facts, tuned_for
from adadecode.stopwatch import lap, stopwatch
from adadecode.tasks import expand_task, score, stops_of, task_domain
from adadecode.tasks.encode import check_stops, decode_output, encode_prompt
from adadecode.tasks.heads import reads_heads

log = logging.getLogger(__name__)
WARMUP_TOKENS = 16


@dataclass(frozen=True)
class Worker:
    """What stays loaded between shards."""

    worker_id: str
    config: EvalConfig
    model: DecoderModel
    tokenizer: Any
    heads: dict[str, ExitHeads]  # per task
    width: int
    draft: DecoderModel | None = None
    medusa: dict[str, MedusaHeads] = field(default_factory=dict[str, MedusaHeads])  # per task
    checked: set[int] = field(default_factory=set[int])  # S of the steps in which rows were found to be independent
    ready_at: datetime | None = None  # when it was warm; None before
    start_up: StartUp | None = None  # what it had taken by then

    def facts(self) -> dict[str, Any]:
        """What only the worker knows of where and with what it ran; stored with every commit."""
        gpu = gpu_names(self.model.devices) if self.config.device == "cuda" else None
        return {
            "worker_id": self.worker_id,
            "ready_at": None if self.ready_at is None else self.ready_at.isoformat(),
            "start_up": None if self.start_up is None else self.start_up.facts(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cpu": cpu_name(),
            "gpu": gpu,
            "gpu_driver": gpu_driver() if gpu else None,
            "cuda": torch.version.cuda if gpu else None,
            "threads": torch.get_num_threads(),
            "kernels": self.model.kernels,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.steps.attention,
            **arithmetic(),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "width": self.width,
            "model_hash": self.model.model_hash,
            "num_layers": self.model.num_layers,
            "context_len": self.model.context_len,
            "eos_token_ids": sorted(self.model.eos_token_ids),
            "model_notes": list(self.model.notes),  # what was odd about its files
            "model_commit": _hub_commit(self.model),
            **self._draft_facts(),
            **self._medusa_facts(),
            **foreign_facts(self.heads, self.medusa),
            **sampling_facts(self.config),
            "heads_hash": {task: heads.content_hash for task, heads in self.heads.items()},
            "exits": {task: list(self.policy(task).exits) for task in self.heads},
            "draft_exits": {task: self._draft_exits(task) for task in expand_task(self.config.task)},
            "chat_template_hash": chat_template_hash(self.tokenizer),
        }

    def _draft_facts(self) -> dict[str, Any]:
        """The same of the draft model, where there is one."""
        if (draft := self.draft) is None:
            return {}
        return {
            "draft_model_hash": draft.model_hash,
            "draft_model_notes": list(draft.notes),
            "draft_model_commit": _hub_commit(draft),
        }

    def _medusa_facts(self) -> dict[str, Any]:
        """The hash of each task's Medusa heads, where there are some."""
        hashes = {task: heads.content_hash for task, heads in self.medusa.items()}
        return {"medusa_heads_hash": hashes} if hashes else {}

    def notes(self) -> list[str]:
        """What a person should know of how this worker decodes, a line each."""
        policy = self.config.decode.policy
        elsewhere = tuned_elsewhere(tuned_for(policy), MachineKind.of(self.model))
        return [*elsewhere, *drawn_otherwise(policy, self.config.model_dump())] if self.heads else []

    @property
    def models(self) -> list[DecoderModel]:
        """What decodes: the model, and the draft model where there is one."""
        return [self.model] if self.draft is None else [self.model, self.draft]

    @property
    def methods(self) -> list[Method]:
        """The methods of the run."""
        return [METHODS[name] for name in self.config.methods]

    def _draft_exits(self, task: str) -> dict[str, list[int]]:
        """Where each method that drafts does so on `task`; 0 stands for before the first layer."""
        drafting = [method for method in self.methods if method.drafts]
        return {method.name: list(self.policy(task).for_method(method).draft_exits) for method in drafting}

    def policy(self, task: str) -> Policy:
        heads = self.heads.get(task)
        return make_policy(self.config.decode, None if heads is None else heads.exits, self.model.num_layers)


@broken_devices_named()
@out_of_memory_named()
def load_worker(
    config: EvalConfig, tasks: tuple[str, ...], worker_id: str, threads: int | None, load: LoadModel = load_model
) -> Worker:
    """Loads heads, and models by `load`, checks that rows are independent at this width, and warms every method up."""
    with stopwatch() as watch:
        with lap("model"):
            worker = _load(config, tasks, worker_id, threads, load)
        with lap("rows"):
            for num_positions in NUM_POSITIONS:
                check_rows_once(worker.model, worker.width, num_positions, worker.checked)
        for task in tasks:
            for method in config.methods * config.warmup:
                with lap(WARM_UP + method):
                    _warm_up(worker, task, method)
        worker = replace(worker, ready_at=datetime.now(UTC), start_up=StartUp.of(watch))
    loaded = f"loaded and warmed up {config.model}, {worker.model.kernels} kernels"
    for line in (loaded, *start_up_lines([worker.facts()]), *worker.notes()):
        log.info(line)
    return worker


def _load(config: EvalConfig, tasks: tuple[str, ...], worker_id: str, threads: int | None, load: LoadModel) -> Worker:
    """A worker with all that its methods need, not yet warm."""
    code_hash()  # of the files as they are now, when they are imported: commits store it hours later
    use_threads(threads)
    model, tokenizer = load(config, "--model")
    check_stops(config, tokenizer)
    heads = {task: heads_for(config, task_domain(task), model) for task in tasks} if reads_heads(config) else {}
    width = make_policy(config.decode, None, model.num_layers).width
    draft, medusa = load_draft_model(config, tokenizer, load), medusa_by_task(config, tasks, model)
    worker = Worker(worker_id, config, model, tokenizer, heads, width, draft, medusa)
    check_draft_model(draft)
    for task in tasks:  # what a method lacks is told before anything is measured
        check_can_decode(model, worker.methods, worker.policy(task), heads.get(task), draft, medusa.get(task))
    return worker


def _warm_up(worker: Worker, task: str, method: str) -> None:
    """A generation that is not recorded. Of what every row is compared with it must succeed; another's failure is logged.

    A method that cannot decode has its own rows to say so, and takes no others' along.
    """
    prompt_ids = [i % worker.model.vocab_size for i in range(1, min(17, worker.model.context_len))]
    decode_once = functools.partial(decode_prompt, worker, method, task, prompt_ids, WARMUP_TOKENS)
    if method == REFERENCE:
        decode_once()
    else:
        result_or_failure(f"warm-up of {method} on {task}", decode_once, *worker.models)


def _hub_commit(model: DecoderModel) -> str | None:
    """The commit on the hub that `model` was loaded from, None where that is not known."""
    return getattr(model.config, "_commit_hash", None)


def decode_prompt(
    worker: Worker, method: str, task: str, prompt_ids: list[int], longest: int | None = None, *, key: int | None = None
) -> Decoded:
    """One generation of `prompt_ids` by `method`, of `longest` tokens at most; tokens are drawn by the noise of `key`."""
    config = worker.config
    stops = StopStrings.of(stops_of(config, task), worker.tokenizer)
    limit, draw = longest or config.decode.max_new_tokens, draw_of(config, key, len(prompt_ids))
    request = Request(prompt_ids, limit, record_logits=config.check_logits, stops=stops, draw=draw)
    policy, heads = worker.policy(task), worker.heads.get(task)
    return decode(worker.model, METHODS[method], request, policy, heads, worker.draft, worker.medusa.get(task))


def evaluate_shard(worker: Worker, shard: Shard) -> list[SampleRow]:
    """The rows of all samples of `shard`: one per sample, repeat and method; a failure is a row with its error."""
    log.info("started: %d samples, methods %s", len(shard.examples), ", ".join(worker.config.methods))
    return [row for sample_idx in range(len(shard.examples)) for row in evaluate_sample(worker, shard, sample_idx)]


def evaluate_sample(worker: Worker, shard: Shard, sample_idx: int) -> list[SampleRow]:
    """The rows of one sample: one per repeat, turn and method; a failure is a row with its error."""
    return [row for repeat in range(worker.config.repeats) for row in _converse(worker, shard, sample_idx, repeat)]


def _converse(worker: Worker, shard: Shard, sample_idx: int, repeat: int) -> list[SampleRow]:
    """The rows of one sample and repeat, turn after turn: in a prompt stand vanilla's answers to the turns before it."""
    config, worker_id = worker.config, worker.worker_id
    rows: list[SampleRow] = []
    answers: tuple[str, ...] = ()
    for _ in range(shard.examples[sample_idx].num_turns):
        of_turn = _take_turns(worker, turns(config.methods, shard, sample_idx, repeat, worker_id, answers, config))
        rows += of_turn
        answer = next(row.output_text for row in of_turn if row.method == REFERENCE)
        if answer is None:
            return rows + unanswered_rows(config, shard, sample_idx, repeat, worker_id, answers)
        answers = (*answers, answer)
    return rows


def _take_turns(worker: Worker, in_order: list[Turn]) -> list[SampleRow]:
    """The rows of one prompt and repeat, in the order in which its methods run; a failure ends only its own turn."""
    rows: dict[str, SampleRow] = {}
    decoded: dict[str, Decoded] = {}
    for turn in in_order:
        result = result_or_failure(turn.name, functools.partial(_measure, worker, turn), *worker.models)
        if isinstance(result, Failure):
            rows[turn.method] = turn.error_row(result.error_type, result.error_message)
        else:
            rows[turn.method], decoded[turn.method] = result
    for turn in in_order:
        if turn.method in decoded and turn.is_compared and REFERENCE in decoded:
            draw = draw_of(worker.config, turn.sampling_key, 0)
            check = functools.partial(compare, decoded[REFERENCE], decoded[turn.method], worker.config.dtype, draw)
            found = result_or_failure(f"{turn.name}, compared with {REFERENCE}", check, *worker.models)
            if isinstance(found, Failure):
                rows[turn.method] = turn.error_row(found.error_type, found.error_message)
            else:
                rows[turn.method] = replace(rows[turn.method], **vars(found))
    return list(rows.values())


def _measure(worker: Worker, turn: Turn) -> tuple[SampleRow, Decoded]:
    """The generation of a turn, whose start and prompt are set as it goes, and its row."""
    turn.begin()
    task, example = turn.shard.task, turn.example
    prompt_ids = turn.prompt_token_ids = encode_prompt(worker.tokenizer, example)
    limit = min(worker.config.decode.max_new_tokens, room_for_output(worker.model, len(prompt_ids)))
    check_rows_once(worker.model, worker.width, len(prompt_ids) + limit, worker.checked)
    decoded = decode_prompt(worker, turn.method, task, prompt_ids, key=turn.sampling_key)
    text = decode_output(worker.tokenizer, decoded.generation, stops_of(worker.config, task))
    scored = score(task, text, example.reference)
    row = turn.generation_row(
        decoded.generation,
        text=text,
        correct=None if scored is None else scored == 1.0,
        logits_digest=logits_digest(decoded.logits),
        width=METHODS[turn.method].step_width(worker.width),
    )
    return row, decoded
