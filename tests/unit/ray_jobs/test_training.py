"""A training on actors, without a cluster: its limits, its actors' errors, its kernels and what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adadecode.errors import AdaDecodeError, KernelsError, RunFolderError, UsageError
from adadecode.records import ChosenKernels
from adadecode.runs.kernels import settle_kernels
from adadecode.runs.storage import open_storage
from adadecode.settings import TrainConfig
from ray_jobs import training
from ray_jobs.events import Died, Fail, Item, Loaded, Start, Started, Wanted
from ray_jobs.scheduler import Scheduler
from ray_jobs.training import LIMITS, HeadsDriver, OutputsActor, TrainActor, TrainTask, is_refusal
from tests.models import needs_compiler, tiny_model

CONFIG = TrainConfig(model="tiny", task="jsonl", dtype="float32", threads=1)
STALE = AdaDecodeError("the training failed: OSError: [Errno 116] Stale file handle")


def undecorated(actor: Any) -> type:
    """The class under `ray.remote`."""
    return actor.__ray_metadata__.modified_class


def outcome_of(*errors: Exception) -> list[Fail]:
    """How a training with one actor fails whose actors raise `errors` one after another."""
    scheduler = Scheduler([Item("the training", None)], LIMITS, is_final=is_refusal)
    actions = scheduler.handle(Wanted(1), 0)
    for turn, error in enumerate(errors):
        (name,) = (action.actor for action in actions if isinstance(action, Start))
        scheduler.handle(Started(name, "a"), 100 * turn)
        scheduler.handle(Loaded(name), 100 * turn + 30)
        actions = scheduler.handle(Died(name, str(error), error=error), 100 * turn + 60)
    return [action for action in actions if isinstance(action, Fail)]


@pytest.mark.parametrize("error", [STALE, RunFolderError("'x' cannot be written (Stale file handle)")])
def test_a_disk_that_blinks_once_ends_no_training_and_one_that_stays_broken_does(error):
    assert outcome_of(error) == []
    assert outcome_of(error, error) == []
    assert outcome_of(error, error, error) == [Fail(str(error), error)]


def test_what_every_actor_would_refuse_ends_a_training_at_once():
    refusal = UsageError("a smaller --batch-tokens")
    assert outcome_of(refusal) == [Fail(str(refusal), refusal)]


@pytest.mark.parametrize(("message", "ends"), [("an illegal memory access", True), ("out of memory", False)])
def test_a_device_that_breaks_in_a_training_ends_the_process_and_memory_that_runs_out_does_not(
    message, ends, monkeypatch, tmp_path
):
    def distill_heads(*_: object) -> None:
        raise torch.AcceleratorError(f"CUDA error: {message}")

    monkeypatch.setattr(training, "distill_heads", distill_heads)
    monkeypatch.setattr(training, "use_threads", lambda _: None)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    actor = undecorated(TrainActor)("worker-0", TrainTask(CONFIG, tmp_path, tmp_path))
    actor._model = None
    with pytest.raises(
        SystemExit if ends else AdaDecodeError, match="1" if ends else "out of memory .* --batch-tokens"
    ):
        actor.work([])


@needs_compiler
def test_actors_make_outputs_with_the_kernels_that_the_first_to_have_loaded_came_to(monkeypatch, tmp_path):
    loads: list[str] = []

    def load_base(config: TrainConfig) -> tuple[Any, None]:
        loads.append(config.kernels)
        return tiny_model(kernels=config.kernels), None

    monkeypatch.setattr(training, "load_base", load_base)
    actors = [undecorated(OutputsActor)(f"worker-{idx}", TrainTask(CONFIG, tmp_path, tmp_path)) for idx in range(3)]
    actors[0].load()
    actors[1].load()
    assert loads == ["auto", "native"]
    open_storage(str(tmp_path)).delete("kernels.json")
    settle_kernels(open_storage(str(tmp_path)), ChosenKernels("eager", "no compiler"), "another")
    actors[2].load()
    assert actors[2]._model.kernels == "eager"


@needs_compiler
def test_an_actor_that_cannot_have_the_kernels_of_the_training_is_refused(monkeypatch, tmp_path):
    def load_base(config: TrainConfig) -> None:
        raise KernelsError(f"--kernels {config.kernels}: there is no C++ compiler")

    monkeypatch.setattr(training, "load_base", load_base)
    settle_kernels(open_storage(str(tmp_path)), ChosenKernels("native"), "another")
    with pytest.raises(KernelsError, match="has native kernels, and here --kernels native: there is no C"):
        undecorated(OutputsActor)("worker-0", TrainTask(CONFIG, tmp_path, tmp_path)).load()


def test_an_actor_that_is_lost_is_said():
    lines: list[str] = []
    nobody: Any = None

    class Heads(HeadsDriver):
        def on_done(self, item: Item, result: Any) -> None:
            raise AssertionError(item)

    Heads(nobody, nobody, nobody, 1, lines.append).on_lost_actor("worker-0 on host is gone: OOM killer")
    assert lines == ["worker-0 on host is gone: OOM killer"]


@pytest.mark.parametrize("given", [None, "others"])
def test_only_outputs_that_the_user_named_are_never_made_again(given, monkeypatch, tmp_path):
    """A part of other kernels is made anew in a folder of the training's own, as without Ray."""
    seen: list[tuple[TrainConfig, Path]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "load_tokenizer", lambda *_: (tiny_model().config, None))
    monkeypatch.setattr(training, "check_settings", lambda *_: None)
    monkeypatch.setattr(training, "watched_cluster", training.contextlib.nullcontext)
    monkeypatch.setattr(training, "_make_outputs", lambda config, _, outputs, *rest: seen.append((config, outputs)))
    monkeypatch.setattr(training, "_train", lambda *_: None)
    training.train_on_ray(CONFIG.model_copy(update={"outputs": given}), Path("heads"), print)
    [(config, outputs)] = seen
    assert config.outputs == (None if given is None else str(tmp_path / "others"))
    assert outputs == tmp_path / (given or "heads")
