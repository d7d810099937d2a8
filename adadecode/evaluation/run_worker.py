"""The worker of a run: one that computes with the kernels which the run has, so that its table is of one engine."""

import socket
from collections.abc import Callable
from typing import TypeVar

import torch

from adadecode.errors import KernelsError
from adadecode.evaluation.worker import Worker, load_worker
from adadecode.kernels.choose import choose_kernels
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import LoadModel, load_model
from adadecode.records import ChosenKernels
from adadecode.runs.kernels import settle_kernels, settled_kernels
from adadecode.runs.storage import Storage
from adadecode.settings import EvalConfig, ModelSettings

LoadedT = TypeVar("LoadedT")


def load_run_worker(
    config: EvalConfig,
    tasks: tuple[str, ...],
    worker_id: str,
    threads: int | None,
    storage: Storage,
    load_models: LoadModel = load_model,
) -> Worker:
    """`load_worker` with the kernels of the run at `storage`; the first to have loaded settles what `auto` comes to.

    Raises KernelsError when the run has kernels that cannot be had here: one table is of one engine.
    """

    def load(kernels: str) -> Worker:
        return load_worker(config.model_copy(update={"kernels": kernels}), tasks, worker_id, threads, load_models)

    return load_settled(config, worker_id, storage, load, lambda worker: worker.model)


def load_settled(
    config: ModelSettings,
    worker_id: str,
    storage: Storage,
    load: Callable[[str], LoadedT],
    model_of: Callable[[LoadedT], DecoderModel],
) -> LoadedT:
    """What `load` gives for the kernels that are settled at `storage`, or settles there what `auto` came to.

    Raises KernelsError when those kernels cannot be had here.
    """
    if config.kernels != "auto":
        return load(config.kernels)
    found = settled_kernels(storage)
    if found is not None:
        return _load_with(config, storage, found, load)
    loaded = load("auto")
    settled = settle_kernels(storage, model_of(loaded).chosen_kernels, worker_id)
    if settled.kernels == model_of(loaded).kernels:
        return loaded
    del loaded  # its memory is needed: another was first while this one loaded
    return _load_with(config, storage, settled, load)


def _load_with(
    config: ModelSettings, storage: Storage, settled: ChosenKernels, load: Callable[[str], LoadedT]
) -> LoadedT:
    try:
        return load(settled.kernels)
    except KernelsError as error:
        here = choose_kernels("auto", torch.device(config.device), getattr(torch, config.dtype))
        why = error.reason if here.because is None else f"auto gives {here.kernels} because {here.because}"
        raise KernelsError(
            f"the run at {storage.location!r} has {settled.kernels} kernels, and here {why}: mend that on "
            f"{socket.gethostname()}, or start another run with another --out"
        ) from error
