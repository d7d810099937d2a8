"""Whether there is memory for the model, its cache, its heads and its graphs, told before anything is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from adadecode.doctor.finding import Finding
from adadecode.doctor.machine import gb
from adadecode.doctor.sources import head_bytes
from adadecode.doctor.subject import Subject
from adadecode.kernels.choose import PLAIN_KERNELS
from adadecode.kernels.kv_cache import bucket_columns, num_columns
from adadecode.kernels.stages import balanced_stages
from adadecode.model.families import check_one_device, context_len
from adadecode.model.head_files import TENSORS
from adadecode.model.medusa_heads import TENSORS as MEDUSA_TENSORS
from adadecode.model.memory import SMALLER_MODEL
from adadecode.model.placement import devices_of
from adadecode.model.size import ModelSize, model_size

PROCESS_BYTES = 500_000_000  # a worker with torch and transformers and nothing loaded
CUDA_BYTES = 1_500_000_000  # CUDA's context, its libraries' workspaces and the graphs of a run
GRAPHS = "graphs and CUDA itself"  # on each GPU
TIGHT = 0.9  # of what is free: more is a warning
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def memory(subject: Subject) -> Iterator[Finding]:
    """What the workers on this machine need is free, on the device where they compute and on the host."""
    needs = needed(subject)
    if subject.config.device == "cuda":
        of_gpus = on_each_gpu(subject, needs)
        for idx, of_gpu in enumerate(of_gpus):
            free, _ = torch.cuda.mem_get_info(idx)
            yield memory_finding("GPU memory" if len(of_gpus) == 1 else f"GPU {idx} memory", of_gpu, 1, free)
        host = {"weights on their way": unmapped_weights(subject), "processes": PROCESS_BYTES}
        host = {name: num_bytes for name, num_bytes in host.items() if num_bytes}
        yield memory_finding("memory", host, subject.num_workers, free_host())
    else:
        yield memory_finding("memory", needs, subject.num_workers, free_host())


def needed(subject: Subject) -> dict[str, int]:
    """The bytes that one worker takes on its devices, by what they hold; estimates, but for the weights and the cache."""
    config = subject.config
    is_cuda = config.device == "cuda"
    chosen = subject.chosen_kernels
    is_native, is_graphed = chosen.kernels == "native", is_cuda and chosen.kernels not in PLAIN_KERNELS
    sizes = sizes_of(subject)
    own, positions = sizes["--model"], subject.num_positions
    columns = bucket_columns(positions, context_len(subject.model_config)) if is_cuda else 0
    columns = columns or num_columns(positions)
    heads = sum(head_bytes(folder, TENSORS) for folder in set(subject.heads_folders.values()))
    heads += sum(head_bytes(folder, MEDUSA_TENSORS) for folder in set(subject.medusa_folders.values()))
    itemsize = getattr(torch, config.dtype).itemsize
    logits = config.decode.max_new_tokens * own.vocab_size * itemsize * len(config.methods)
    found = {
        "weights": sum(size.weights for size in sizes.values()),
        "their packed copy": sum(size.packed for size in sizes.values()) if is_native else 0,
        "cache": sum(size.column for size in sizes.values()) * columns * (2 if is_graphed else 1),
        "heads": heads * (2 if is_native else 1),
        GRAPHS: CUDA_BYTES if is_cuda else 0,
        "logits to compare": logits if config.check_logits and not is_cuda else 0,
        "the process": 0 if is_cuda else PROCESS_BYTES,
    }
    return {name: num_bytes for name, num_bytes in found.items() if num_bytes}


def sizes_of(subject: Subject) -> dict[str, ModelSize]:
    """The size of the model and of the draft model, where there is one, by their flags."""
    return {flag: model_size(described, subject.config.dtype) for flag, (described, _) in subject.described.items()}


def unmapped_weights(subject: Subject) -> int:
    """The bytes of weights that a worker with GPUs holds on the host for a while, in memory of its own.

    Safetensors are mapped: their pages are the system's, shared by all workers and taken back where there is need. What
    is unpacked (GGUF) or is of another dtype than `--dtype` is not; where the configuration names none it is taken as that.
    """
    wanted, sizes = getattr(torch, subject.config.dtype), sizes_of(subject)
    return sum(
        sizes[flag].weights
        for flag, (described, _) in subject.described.items()
        if subject.models[flag].gguf is not None or (described.dtype or wanted) != wanted
    )


def on_each_gpu(subject: Subject, needs: Mapping[str, int]) -> list[dict[str, int]]:
    """What of `needs` comes to each GPU of a worker: its layers and their cache, and all the rest to the first.

    Raises UsageError for more GPUs than layers, UnsupportedModelError for a model that several cannot hold.
    """
    devices = devices_of(subject.config, subject.model_config.num_hidden_layers)
    check_one_device(subject.model_config, subject.config.kernels, len(devices))
    if len(devices) == 1:
        return [dict(needs)]
    sizes = sizes_of(subject)
    own = sizes["--model"]
    stages = balanced_stages(own.layers, own.weights - sum(own.layers), devices)
    cache_of_layer = needs["cache"] * own.column // sum(size.column for size in sizes.values()) // len(own.layers)
    others = [
        {
            "weights": sum(own.layers[stage.start : stage.stop]),
            "cache": cache_of_layer * (stage.stop - stage.start),
        }
        for stage in stages[1:]
    ]
    home = {name: num_bytes - sum(other.get(name, 0) for other in others) for name, num_bytes in needs.items()}
    return [home, *(other | {GRAPHS: needs[GRAPHS]} for other in others)]


def memory_finding(check: str, needs: Mapping[str, int], num_workers: int, free: int | None) -> Finding:
    """Whether `num_workers` times `needs`, in bytes, is `free`; None where that is not known."""
    total = num_workers * sum(needs.values())
    parts = ", ".join(f"{name} {gb(num_bytes)}" for name, num_bytes in needs.items())
    times = f"{num_workers} workers of " if num_workers > 1 else ""
    need = f"about {gb(total)} needed ({times}{parts})"
    if free is None:
        return Finding.ok(check, f"{need}; the system does not say what is free")
    found = f"{need}, {gb(free)} free"
    remedy = SMALLER_MODEL if num_workers == 1 else f"fewer --workers, or {SMALLER_MODEL}"
    if total > free:
        return Finding.fails(check, found, remedy)
    return Finding.warning(check, found, remedy) if total > TIGHT * free else Finding.ok(check, found)


def free_host(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """The bytes that processes here can still take, by the system and by the container's limit; None where unknown."""
    found = [free for free in (_free_of_system(meminfo), _free_of_container(cgroup)) if free is not None]
    return min(found, default=None)


def _free_of_system(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kib[0]) * 1024 if kib else None


def _free_of_container(cgroup: Path) -> int | None:
    """What is left below the limit of a control group (version 2), whose page cache can be taken back."""
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used + int(stat.get("inactive_file", 0)))
