"""The machine a bench runs on: what it is, how fast it copies, and how much memory the subject takes there."""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch

from adadecode.bench.calls import used_tests
from adadecode.bench.result import BenchMachine, Memory
from adadecode.bench.subject import BenchSubject
from adadecode.engine.policy import VANILLA, Policy
from adadecode.kernels.arithmetic import arithmetic
from adadecode.kernels.library import load_library
from adadecode.kernels.weights import Head
from adadecode.model.decoder import DecoderModel
from adadecode.model.foreign import made_for_others
from adadecode.model.machine_kind import gpu_names
from adadecode.provenance import cpu_name, gpu_driver

COPY_BYTES, NUM_COPIES, NUM_WARMUP_COPIES = 2 << 30, 20, 3
READ_BLOCK, READ_BUDGET_S, NUM_WARMUP_READS = 1024, 0.2, 2  # a block in floats; a share for each repeat


def copy_bandwidth() -> float:
    """Bytes per second of a large copy within the CUDA device, bytes read and written; the median of several."""
    num_bytes = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(num_bytes // 4, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    durations_ms = []
    for _ in range(NUM_WARMUP_COPIES + NUM_COPIES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        durations_ms.append(begin.elapsed_time(end))
    del source, target
    torch.cuda.empty_cache()
    return 2 * (num_bytes // 4 * 4) / statistics.median(durations_ms[NUM_WARMUP_COPIES:]) * 1e3


class ReadBandwidth:
    """Bytes per second in which a CPU reads as many bytes as a step reads weights, over and over, by the same threads.

    So what lies in its caches between two steps does so here. Known where native kernels compute.
    """

    def __init__(self, num_bytes: int) -> None:
        self._buffer = torch.ones(num_bytes // 4 // READ_BLOCK * READ_BLOCK)
        self._durations_s: list[float] = []

    def measure(self, budget_s: float = READ_BUDGET_S) -> None:
        """Reads for some `budget_s` seconds."""
        read, threads = load_library().adadecode_read, torch.get_num_threads()
        at, num_floats = self._buffer.data_ptr(), self._buffer.numel()
        for _ in range(NUM_WARMUP_READS):
            read(at, num_floats, threads)
        stop = time.perf_counter() + budget_s
        while (started := time.perf_counter()) < stop:
            read(at, num_floats, threads)
            self._durations_s.append(time.perf_counter() - started)

    @property
    def bytes_per_s(self) -> float:
        """By the median read."""
        return self._buffer.nbytes / statistics.median(self._durations_s)


def memory_used(subject: BenchSubject) -> Memory:
    """Bytes of the weights, of the heads, of keys and values, and at the peak of devices and process until now."""
    gpus = [device for device in subject.model.devices if device.type == "cuda"]
    weights = _storages(subject.model.lm.parameters())
    used = [used_tests(heads, subject.policies[task].exits, subject.width) for task, heads in subject.heads.items()]
    found = [test for tests in used for test in tests.values()]
    blocks = [test.block.layer for test in found if isinstance(test, Head) and test.block is not None]
    matrices = [tensor for test in found for tensor in test.tensors]
    matrices += [tensor for layer in blocks for tensor in vars(layer).values() if tensor is not None]
    storages = _storages(matrices)
    longest = max(subject.num_positions(prompt) for prompt in subject.prompts)
    draft, medusa = subject.draft, [tensor for heads in subject.medusa.values() for tensor in heads.tensors]
    return Memory(
        weights_bytes=sum(weights.values()),
        heads_bytes=sum(size for place, size in storages.items() if place not in weights),
        kv_bytes=_kv_bytes(subject.model, longest),
        draft_model_bytes=None
        if draft is None
        else sum(_storages(draft.lm.parameters()).values()) + _kv_bytes(draft, min(longest, draft.context_len)),
        medusa_heads_bytes=sum(_storages(medusa).values()) if medusa else None,
        peak_device_bytes=sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
        peak_device_reserved_bytes=sum(map(torch.cuda.max_memory_reserved, gpus)) if gpus else None,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """The bytes of each place in memory that `tensors` lie in."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def _kv_bytes(model: DecoderModel, num_positions: int) -> int:
    """The bytes of keys and values of a request of `num_positions` positions."""
    return model.num_columns(num_positions) * model.weights.column_bytes


def peak_rss_bytes() -> int:
    """The most memory this process had, in bytes; the system counts in KiB, or in bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def drafting_of(policy: Policy) -> dict[str, Any]:
    """What is drafted when under `policy`, as bench.json has it."""
    names = ("exits", "gammas", "stop", "max_drafts", "reject", "ngram", "ngram_store")
    return {name: getattr(policy, name) for name in names}


def machine_of(subject: BenchSubject) -> BenchMachine:
    """Where and with what `subject` runs."""
    is_cuda = subject.model.device.type == "cuda"
    return BenchMachine(
        device=gpu_names(subject.model.devices) if is_cuda else cpu_name(),
        driver=gpu_driver() if is_cuda else None,
        cuda=torch.version.cuda if is_cuda else None,
        python=platform.python_version(),
        dtype=subject.config.dtype,
        threads=torch.get_num_threads(),
        kernels=subject.model.kernels,
        attention=subject.model.steps.attention,
        **arithmetic(),
        width=subject.width,
        num_layers=subject.model.num_layers,
        model_hash=subject.model.model_hash,
        draft_model_hash=None if subject.draft is None else subject.draft.model_hash,
        medusa_heads_hash={task: heads.content_hash for task, heads in subject.medusa.items()},
        heads_hash={task: heads.content_hash for task, heads in subject.heads.items()},
        foreign_heads=made_for_others(subject.heads),
        foreign_medusa_heads=made_for_others(subject.medusa),
        policy=drafting_of(next(iter(subject.policies.values()), VANILLA)),
    )
