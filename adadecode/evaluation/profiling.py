"""A trace of a worker at work, beside its run: some tokens more of each method, which no row records.

Tokens that are traced are slow, so what is measured never is: the trace is made after a shard's commit.
"""

import copy
import logging
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from adadecode.engine.generate import room_for_output
from adadecode.evaluation.failures import result_or_failure
from adadecode.evaluation.worker import Worker, decode_prompt
from adadecode.kernels.step import DecodeStep, Prefilled, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.records import Shard
from adadecode.runs.profiles import profile_name
from adadecode.runs.storage import Storage
from adadecode.tasks.encode import encode_prompt

if TYPE_CHECKING:
    from adadecode.kernels.choose import Steps

log = logging.getLogger(__name__)


def profile_shard(worker: Worker, shard: Shard, storage: Storage) -> None:
    """Writes a trace of `worker` that decodes after the first prompt of `shard`, gzipped, beside the run.

    What fails is logged and changes nothing of the run. Raises DeviceLostError.
    """
    name = profile_name(worker.worker_id, shard.shard_idx)

    def write() -> bool:
        content = trace(worker, shard)
        storage.replace(name, content)
        log.info("profiled: %s, %d bytes", name, len(content))
        return True

    result_or_failure("the profile", write, *worker.models)


def trace(worker: Worker, shard: Shard) -> bytes:
    """A Chrome trace (JSON, gzipped) of `--profile` tokens by each method, after as many that are not traced."""
    num_tokens = worker.config.profile
    assert num_tokens is not None, worker.config
    prompt_ids = encode_prompt(worker.tokenizer, shard.examples[0])
    limit = min(num_tokens, room_for_output(worker.model, len(prompt_ids)))
    named = replace(worker, model=with_names(worker.model), draft=worker.draft and with_names(worker.draft))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if worker.config.device == "cuda" else [])]
    once = schedule(
        wait=0, warmup=1, active=1, repeat=1
    )  # the first time captures graphs and starts the tracing library
    with tempfile.TemporaryDirectory(prefix="adadecode-") as folder:
        file = Path(folder) / "trace.json.gz"
        with profile(
            activities=activities,
            schedule=once,
            on_trace_ready=lambda traced: traced.export_chrome_trace(str(file)),
            acc_events=True,
        ) as traced:
            for name, value in _facts(worker, shard, len(prompt_ids), limit).items():
                traced.add_metadata(name, str(value))
            for _ in range(2):
                for method in worker.config.methods:
                    with record_function(method):
                        decode_prompt(named, method, shard.task, prompt_ids, limit)
                traced.step()
        return file.read_bytes()


def _facts(worker: Worker, shard: Shard, prompt_len: int, limit: int) -> dict[str, Any]:
    """What a trace says of itself."""
    return {
        "adadecode worker": worker.worker_id,
        "adadecode shard": shard.shard_idx,
        "adadecode task": shard.task,
        "adadecode kernels": worker.model.kernels,
        "adadecode prompt tokens": prompt_len,
        "adadecode most output tokens of each method": limit,
    }


def with_names(model: DecoderModel) -> DecoderModel:
    """`model`, whose decode steps name in a trace what they do: a profiler sees nothing in native kernels, or of graphs."""
    named = copy.copy(model)
    named.steps = cast("Steps", NamedSteps(model.steps))
    return named


class NamedSteps:
    """`Steps` whose steps are NamedStep."""

    def __init__(self, steps: "Steps") -> None:
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)

    def new(self, width: int, num_positions: int) -> DecodeStep:
        return cast("DecodeStep", NamedStep(self._steps.new(width, num_positions)))


class NamedStep:
    """A decode step each of whose calls has a name in a trace."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def prepare(self, boundaries: Iterable[int], tests: Iterable[ExitTest]) -> None:
        with record_function("prepare"):
            self._step.prepare(tuple(boundaries), tests)

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        with record_function(f"prefill of {len(prompt_ids)} tokens"):
            return self._step.prefill(prompt_ids)

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        with record_function(f"layers {start}-{stop}, {hi - lo} rows"):
            self._step.run(lo, hi, start, stop)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        with record_function(f"layers {segment.start}-{segment.stop} and exit test, {segment.hi - segment.lo} rows"):
            return self._step.run_to_exit(segment, test, first_tested)

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        with record_function(f"exit test, {hi - lo} rows"):
            return self._step.test(head, lo, hi)

    def probe(self, gate: Gate, slot: int) -> float:
        with record_function("gate"):
            return self._step.probe(gate, slot)

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        with record_function(f"verify, {hi - lo} rows"):
            return self._step.verify(lo, hi)
