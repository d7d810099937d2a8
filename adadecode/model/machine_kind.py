"""Which kind of machine decodes, as far as it decides which policy is fast there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from adadecode.model.decoder import DecoderModel
from adadecode.provenance import cpu_name

CACHE_SHARE = 0.75  # of the largest cache that weights may fill to be found there again by the next step


class MachineKind(NamedTuple):
    """A kind of machine: `weights` says where a decode step reads a model's from."""

    processor: str
    threads: int
    dtype: str
    weights: Literal["cache", "memory"]

    @classmethod
    def of(cls, model: DecoderModel) -> "MachineKind":
        """Where `model` decodes in this process."""
        is_gpu = model.device.type == "cuda"
        weights = model.weights
        read = [t for layer in weights.layers for t in vars(layer).values() if t is not None] + [*weights.head.matrices]
        if weights.borrowed is not None:
            read = [*model.lm.parameters()]
        num_bytes = sum(tensor.nbytes for tensor in read)
        return cls(
            processor=gpu_names(model.devices) if is_gpu else processor_family(),
            threads=torch.get_num_threads(),
            dtype=str(model.dtype).removeprefix("torch."),
            weights="cache" if not is_gpu and num_bytes <= CACHE_SHARE * cache_bytes() else "memory",
        )

    def text(self) -> str:
        return f"{self.processor}, threads {self.threads}, {self.dtype}, weights in {self.weights}"


def gpu_names(devices: Sequence[torch.device]) -> str:
    """The GPUs `devices` by their names, as a table has them: `2 x NVIDIA H100`, or one name alone."""
    names = Counter(torch.cuda.get_device_name(device) for device in devices)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())


def tuned_elsewhere(tuned_for: Mapping[str, Any] | None, here: MachineKind) -> list[str]:
    """One line when a policy that was `tuned_for` a kind of machine runs on another; none where that is not known."""
    if tuned_for is None or set(tuned_for) != set(MachineKind._fields):
        return []
    wanted = MachineKind(**tuned_for)
    if [str(value) for value in wanted] == [str(value) for value in here]:  # a file has all of them as text
        return []
    return [
        f"the policy was tuned for another kind of machine ({wanted.text()}) than this ({here.text()}): "
        "`adadecode tune` finds the fastest here"
    ]


def processor_family(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's make and model by number, which a name such as `AMD EPYC` does not tell; else its name."""
    found: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    numbers = [found.get(name) for name in ("vendor_id", "cpu family", "model")]
    if None in numbers:
        return cpu_name()
    return "{} family {} model {}".format(*numbers)


def cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The bytes of the processor's largest cache; 0 where the system does not tell."""
    sizes = [file.read_text().strip() for file in caches.glob("index*/size")]
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max(
        (int(size[:-1]) * unit[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in unit), default=0
    )
