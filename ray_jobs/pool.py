"""The actors of a run as Ray has them: they are started, assigned work and stopped, and their futures become events.

Own loop over `ray.wait`, not `ray.util.ActorPool`, which loses the work of a node that dies.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from adadecode.errors import AdaDecodeError
from adadecode.files import keep_others_from_writing
from adadecode.printable import on_one_line
from ray_jobs.events import Cancelled, Died, Event, Finished, Item, Loaded, Started

HELLO, LOAD = Item("starting", None), Item("loading", None)


class Place(NamedTuple):
    """Where an actor's process runs: a process of a node, and the GPUs it was given there."""

    host: str
    pid: int
    node_id: str
    gpus: tuple[str, ...]

    @property
    def name(self) -> str:
        """What stays the same for the next process there."""
        return "/".join((self.host, self.node_id, *self.gpus))

    def __str__(self) -> str:
        return ", ".join((self.host, *(f"GPU {gpu}" for gpu in self.gpus)))


class PooledActor:
    """What every actor of a pool is: made from its name and the pool's task; `load` is called once, then `work`.

    What an actor is made from the cluster's head keeps, and where it keeps its state it may write it to a disk. What
    `load` is called with goes to the actor alone.
    """

    process_s = 0.0  # from when the driver asked for this process until it answered, by the clocks of both

    def hello(self, asked_at: float, threads: int) -> Place:
        """Where this process runs, which was asked for at `asked_at` (`time.time`) and computes with `threads`.

        Answers as soon as it does, before the model is loaded and before anything is written. What the actor's module
        imports is imported by then: where that is torch, the variable set here comes too late for it (`use_threads`).
        """
        self.process_s = max(0.0, time.time() - asked_at)
        # in a `runtime_env` it would have Ray start a process of its own, where one may wait that has Ray loaded
        os.environ["OMP_NUM_THREADS"] = str(threads)
        keep_others_from_writing()
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(socket.gethostname(), os.getpid(), context.get_node_id(), tuple(gpus))


@dataclass(frozen=True)
class Done:
    """What `work` returns: `result` is the caller's, `full_s` the scheduler's (`Finished`)."""

    result: Any
    full_s: float | None = None


class Pool:
    """The processes behind the scheduler's names of actors, and the futures of what each was assigned."""

    def __init__(
        self,
        actor_class: Any,
        task: Any,
        threads: int,
        resources: dict[str, float],
        load_with: Sequence[Any] = (),
        label_selector: dict[str, str] | None = None,
    ) -> None:
        """`resources` are Ray's options of one actor, which computes with `threads`; it is loaded with `load_with`.

        Actors start only on nodes that `label_selector` takes.
        """
        self._actor_class = actor_class.options(label_selector=label_selector, **resources)
        self._task, self._threads, self._load_with = task, threads, load_with
        self.resources = resources
        self._assigned: dict[ray.ObjectRef, tuple[str, Item]] = {}
        self.actors: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def start(self, name: str) -> None:
        """Starts an actor, loading."""
        actor = self.actors[name] = self._actor_class.remote(name, self._task)
        self._assigned[actor.hello.remote(time.time(), self._threads)] = (name, HELLO)
        self._assigned[actor.load.remote(*self._load_with)] = (name, LOAD)

    def assign(self, name: str, item: Item) -> None:
        """Has the actor do the item after what it was assigned before."""
        self._assigned[self.actors[name].work.remote(item.work)] = (name, item)

    def cancel(self, name: str, item: Item) -> None:
        """Cancels what the actor has not begun; nothing happens to what it has."""
        for ref, assigned in self._assigned.items():
            if assigned == (name, item):
                ray.cancel(ref)

    def stop(self, name: str) -> None:
        """Ends the actor's process and forgets it; one that does not answer Ray ends after some seconds."""
        self.places.pop(name, None)
        self._assigned = {ref: assigned for ref, assigned in self._assigned.items() if assigned[0] != name}
        if (actor := self.actors.pop(name, None)) is not None:
            ray.kill(actor)

    def stop_all(self) -> None:
        """Ends the process of every actor; a cluster that is gone has ended them."""
        for name in list(self.actors):
            with contextlib.suppress(RayError):
                self.stop(name)

    def poll(self, timeout_s: float) -> list[tuple[Event, Any]]:
        """What happened, each event with the result of the work it ends; waits for the first for at most `timeout_s`."""
        refs = list(self._assigned)
        if not refs:
            time.sleep(timeout_s)
            return []
        if not ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            return []
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._event(ref) for ref in ready if ref in self._assigned]

    def _event(self, ref: ray.ObjectRef) -> tuple[Event, Any]:
        name, item = self._assigned.pop(ref)
        try:
            result = ray.get(ref)
        except TaskCancelledError:
            return Cancelled(name, item.name), None
        except RayTaskError as error:
            raised = _one_line_error(error, item.name)
            return Died(name, on_one_line(raised, 300), error=raised), None
        except RayError as error:  # the actor, its node or its environment is gone
            preempted = isinstance(error, RayActorError) and error.preempted
            return Died(name, on_one_line(error, 300), preempted), None
        if item is HELLO:
            self.places[name] = result
            return Started(name, result.name), None
        if item is LOAD:
            return Loaded(name), None
        return Finished(name, item.name, result.full_s), result.result


def _one_line_error(error: RayTaskError, doing: str) -> AdaDecodeError:
    """The worker's own one-line error when it made one, else a line that names what it was doing."""
    cause = error.cause
    if isinstance(cause, AdaDecodeError):
        return cause
    last_line = str(error).strip().splitlines()[-1]
    return AdaDecodeError(f"{doing} failed: {last_line}; Ray's logs are under {tempfile.gettempdir()}/ray")
