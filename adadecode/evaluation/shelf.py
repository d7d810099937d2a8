"""Models that stay loaded from one run to the next in a process: one of each kind, the newest."""

from pathlib import Path
from typing import NamedTuple

from adadecode.demo import resolve_model
from adadecode.model.load import Loaded, load_model
from adadecode.settings import ModelSettings


class Kept(NamedTuple):
    """A model as it was loaded: for which settings, from which files, with which kernels asked for."""

    settings: ModelSettings
    files: tuple[tuple[str, int, int], ...]
    loaded: Loaded


class ModelShelf:
    """Loads models, and keeps of each flag (`--model`, `--draft-model`) the one that was loaded last."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self.num_loaded = 0

    def load(self, settings: ModelSettings, flag: str) -> Loaded:
        """What `load_model` gives; a model that is kept, with its steps let go, where files and settings are the same.

        What was kept under `flag` goes before another is loaded, so that both need not fit in memory.
        """
        wanted, files = _of_model(settings), files_of(settings.model)
        kept = self._kept.get(flag)
        if kept is not None:
            model = kept.loaded[0]
            has_kernels = settings.kernels in (kept.settings.kernels, model.kernels)
            if has_kernels and files == kept.files and wanted == _of_model(kept.settings):
                model.drop_steps()
                return kept.loaded
            del model, self._kept[flag], kept
        loaded = load_model(settings, flag)
        self._kept[flag] = Kept(settings, files, loaded)
        self.num_loaded += 1
        return loaded


def files_of(model: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files of a local model, which tell whether one was replaced; none of a hub model."""
    path = Path(resolve_model(model))
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return tuple((file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files if file.is_file())


def _of_model(settings: ModelSettings) -> tuple[object, ...]:
    """What decides which weights are loaded where."""
    return settings.model, settings.revision, settings.dtype, settings.device, settings.gpus_per_worker
