"""Training on a cluster: actors generate the parts of the outputs, then one actor with one GPU trains on them."""

import contextlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import ray
from ray.exceptions import RayError

from adadecode.errors import AdaDecodeError, RunFolderError
from adadecode.evaluation.run_worker import load_settled
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import context_len
from adadecode.model.head_files import HeadFacts
from adadecode.model.load import load_tokenizer, use_threads
from adadecode.model.memory import broken_devices_named, out_of_memory_named
from adadecode.records import Say
from adadecode.runs.kernels import KERNELS_FILE
from adadecode.runs.storage import open_storage
from adadecode.settings import TrainConfig
from adadecode.training.outputs import OutputsProgress, Part, find_part, make_part
from adadecode.training.prompts import Chunk, TaskPrompts, UsablePrompts
from adadecode.training.train import (
    SMALLER_TRAINING,
    check_settings,
    distill_heads,
    load_base,
    make_folders,
    outputs_folder,
)
from ray_jobs.actors import lost_device_ends_the_process
from ray_jobs.cluster import actor_resources, with_absolute_paths
from ray_jobs.driver import Driver
from ray_jobs.events import Item
from ray_jobs.labels import selector_of
from ray_jobs.limits import Limits
from ray_jobs.pool import Done, Pool, PooledActor
from ray_jobs.scheduler import Scheduler
from ray_jobs.watch import ClusterWatch, watched_cluster

# How long a part or a training takes is not known beforehand. What a disk refused for a moment is tried again, by another
# actor, which goes on from what is stored.
LIMITS = Limits(max_deaths=3, max_errors=3, first_deadline_s=None)

LINES_S = 5.0  # an actor whose node is gone with the head never answers


@dataclass(frozen=True)
class TrainTask:
    """What an actor needs to know of its training; sent once."""

    config: TrainConfig
    out: Path  # the folder of the outputs that are made, or of the heads that are trained
    heads: Path


class ModelActor(PooledActor):
    """An actor with the base model."""

    def __init__(self, worker_id: str, task: TrainTask) -> None:
        self._worker_id, self._task = worker_id, task

    def load(self) -> None:
        """Loads the model. Separate from `__init__`, so that errors arrive whole."""
        with lost_device_ends_the_process(), broken_devices_named():
            self._model = self.load_model()
        self._to_say = self._model.chosen_kernels.lines()

    def load_model(self, kernels: str | None = None) -> DecoderModel:
        """The base model, with other `kernels` than the settings' where they are given."""
        config = self._task.config
        return load_base(config if kernels is None else config.model_copy(update={"kernels": kernels}))[0]


@ray.remote
class OutputsActor(ModelActor):
    """Makes parts of the outputs, one at a time; rows go from here to the folder, not through the driver."""

    def load_model(self, kernels: str | None = None) -> DecoderModel:
        """With the kernels of the training: the first to have loaded settles what `auto` comes to."""
        assert kernels is None, kernels
        storage = open_storage(str(self._task.heads))
        load = super().load_model
        return load_settled(self._task.config, self._worker_id, storage, load, lambda model: model)

    def work(self, chunk: Chunk) -> Done:
        """Makes the part of `chunk`, unless it is stored; returns it, whether it was, and what is to be said of it."""
        lines, self._to_say = self._to_say, []
        config, out = self._task.config, self._task.out
        part = find_part(self._model, chunk, config, out, lines.append)
        if part is not None:
            return Done((part, True, lines))
        with lost_device_ends_the_process(), out_of_memory_named(SMALLER_TRAINING):
            return Done((make_part(self._model, chunk, config, out, lambda *_: None), False, lines))


@ray.remote
class TrainActor(ModelActor):
    """Trains on the stored parts; what it says is fetched meanwhile."""

    def __init__(self, worker_id: str, task: TrainTask) -> None:
        super().__init__(worker_id, task)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def work(self, parts: list[Part]) -> Done:
        """Trains to the end; returns the facts of the heads, and what was said and not yet fetched."""
        use_threads(self._task.config.threads)  # a call may run in another thread than `load`
        with lost_device_ends_the_process(), broken_devices_named(), out_of_memory_named(SMALLER_TRAINING):
            facts = distill_heads(self._model, parts, self._task.config, self._task.out, self._lines.put)
        return Done((facts, self.take_lines()))

    def take_lines(self) -> list[str]:
        """What was said since the last call."""
        lines = []
        with contextlib.suppress(queue.Empty):  # the other thread may take some meanwhile
            while True:
                lines.append(self._lines.get_nowait())
        return lines


def train_on_ray(config: TrainConfig, out: Path, say: Say) -> HeadFacts:
    """Trains the heads `config` describes into `out` on the cluster this process is connected to; returns their facts.

    The outputs are the same parts for any number of workers. Raises UsageError, also as ExitHeadsError and
    RunFolderError, NonFiniteLogitsError, ResourcesError, and AdaDecodeError when a part or the training keeps killing its
    actors.
    """
    lm_config, tokenizer = load_tokenizer(config.model, config.revision)
    check_settings(config, lm_config)
    make_folders(config, out)
    sizes = context_len(lm_config), lm_config.vocab_size
    prompts = UsablePrompts(TaskPrompts(config, tokenizer, *sizes), *sizes)
    out, outputs = out.resolve(), outputs_folder(config, out).resolve()
    config = with_absolute_paths(config)
    if config.outputs is not None:  # the user's: what lies there is never made again
        config = config.model_copy(update={"outputs": str(outputs)})
    with watched_cluster(config.address) as cluster:
        parts = _make_outputs(config, prompts, outputs, out, say, cluster)
        return _train(config, parts, out, say, cluster)


def _make_outputs(
    config: TrainConfig, prompts: UsablePrompts, outputs: Path, heads: Path, say: Say, cluster: ClusterWatch
) -> list[Part]:
    """Has every worker make parts in the folder `outputs`; returns all parts in the order of the prompts."""
    open_storage(str(heads)).delete(KERNELS_FILE)  # settled anew by each training
    resources, threads = actor_resources(config, cluster.nodes())
    num_prompts, lines = prompts.count()
    for line in lines:
        say(line)
    assert config.workers is not None, config
    num_actors = min(config.workers, -(-num_prompts // config.part_prompts))
    task = TrainTask(config.model_copy(update={"threads": threads}), outputs, heads)
    pool = Pool(OutputsActor, task, threads, resources, label_selector=selector_of(config))
    scheduler = Scheduler(chunk_items(prompts, config.part_prompts), LIMITS, is_final=is_refusal)
    driver = OutputsDriver(pool, scheduler, cluster, num_actors, OutputsProgress(num_prompts, say), say)
    driver.drive()
    open_storage(str(heads)).delete(KERNELS_FILE)
    return [driver.parts[part_idx] for part_idx in range(len(driver.parts))]


def _train(config: TrainConfig, parts: list[Part], out: Path, say: Say, cluster: ClusterWatch) -> HeadFacts:
    """Trains in one actor, with one GPU or all threads of a node; one that dies is replaced and resumes."""
    resources, threads = actor_resources(config.model_copy(update={"workers": 1}), cluster.nodes())
    resources |= {"max_concurrency": 2}  # so that it can tell what it says while it works
    task = TrainTask(config.model_copy(update={"threads": threads}), out, out)
    pool = Pool(TrainActor, task, threads, resources, label_selector=selector_of(config))
    scheduler = Scheduler([Item("the training", parts)], LIMITS, is_final=is_refusal)
    driver = TrainDriver(pool, scheduler, cluster, say)
    driver.drive()
    assert driver.facts is not None
    return driver.facts


class HeadsDriver(Driver):
    """A driver that gives nothing up: heads need all of it."""

    def __init__(self, pool: Pool, scheduler: Scheduler, cluster: ClusterWatch, num_actors: int, say: Say) -> None:
        super().__init__(pool, scheduler, cluster)
        self._num_actors, self._say = num_actors, say

    def num_wanted(self) -> int:
        return self._num_actors

    def on_lost_actor(self, line: str) -> None:
        self._say(line)

    def on_give_up(self, item: Item, reason: str) -> NoReturn:
        """Raises AdaDecodeError."""
        raise AdaDecodeError(
            f"{item.name} ended its worker {LIMITS.max_deaths} times; what is stored stays, and the same command "
            f"continues ({reason})"
        )

    def say_all(self, lines: list[str]) -> None:
        """Passes on what an actor said."""
        for line in lines:
            self._say(line)


class OutputsDriver(HeadsDriver):
    """Collects the parts of the outputs, by index, and says how far they are."""

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        cluster: ClusterWatch,
        num_actors: int,
        progress: OutputsProgress,
        say: Say,
    ) -> None:
        super().__init__(pool, scheduler, cluster, num_actors, say)
        self._progress = progress
        self.parts: dict[int, Part] = {}

    def on_done(self, item: Item, result: tuple[Part, bool, list[str]]) -> None:
        part, was_there, lines = result
        self.parts[part.part_idx] = part
        self.say_all(lines)
        if was_there:
            self._progress.reused(part)
        else:
            self._progress.made(part.num_outputs, part.num_tokens)


class TrainDriver(HeadsDriver):
    """Takes the facts of the trained heads, and passes on what the training says meanwhile."""

    def __init__(self, pool: Pool, scheduler: Scheduler, cluster: ClusterWatch, say: Say) -> None:
        super().__init__(pool, scheduler, cluster, 1, say)
        self.facts: HeadFacts | None = None

    def on_wait(self) -> None:
        for actor in self._scheduler.actors.values():
            with contextlib.suppress(RayError):  # the loop that waits for the work finds out
                lines = self._pool.actors[actor.name].take_lines.remote() if actor.items else None
                self.say_all(ray.get(lines, timeout=LINES_S) if lines is not None else [])

    def on_done(self, item: Item, result: tuple[HeadFacts, list[str]]) -> None:
        self.facts, lines = result
        self.say_all(lines)


def is_refusal(error: Exception) -> bool:
    """Whether the settings, model or prompts are to blame for what an actor raised, not a disk or the machine."""
    return type(error) is not AdaDecodeError and not isinstance(error, RunFolderError)


def chunk_items(prompts: UsablePrompts, chunk_len: int) -> Iterator[Item]:
    """The chunks of `prompts`, encoded only when they are asked for."""
    for chunk in prompts.chunks(chunk_len):
        yield Item(f"outputs part {chunk.part_idx}", chunk)
