"""Where the weights of a model are: in its folder, in the hub's cache, or still on the hub, from which they are fetched."""

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download

from adadecode.model.checkpoint import INDEX_SUFFIX, WEIGHTS, checkpoint_files, refused_as_pickled
from adadecode.model.files import HUB_TIMEOUT_S, ModelFiles, on_this_machine, reason
from adadecode.stopwatch import lap

PART = re.compile(r"model-\d+-of-\d+\.safetensors")  # of the weights that an index lists


class WeightFiles(NamedTuple):
    """Where the weights are and how many bytes of them; None where the hub does not say. `free` is the cache's disk."""

    where: Literal["folder", "cache", "hub"]
    num_bytes: int | None
    free: int | None = None


def find_weights(files: ModelFiles) -> WeightFiles:
    """Where the weights of `files` are; raises UsageError when some are missing and cannot be fetched."""
    if files.gguf is not None:
        return WeightFiles("folder", (Path(files.source) / files.gguf).stat().st_size)
    if files.folder is not None:
        with files.refused():
            return WeightFiles("folder", _sum_of(checkpoint_files(files.folder)))
    if cached := _cached(files):
        return WeightFiles("cache", _sum_of(cached))
    return WeightFiles("hub", _on_hub(files), _free_at(Path(constants.HF_HUB_CACHE)))


def fetch_weights(files: ModelFiles) -> None:
    """Has the weights of a hub's model in its cache.

    The hub's client locks each file that it fetches: of a node's workers one does, and the others wait for it.
    Raises UsageError where the hub has no weights that are taken, or cannot be asked.
    """
    if files.gguf is not None or files.folder is not None or _cached(files):
        return
    with lap("fetch"):
        if files.path(WEIGHTS) is not None:
            return
        index = files.json(WEIGHTS + INDEX_SUFFIX)
        if index is None:
            _on_hub(files)  # says what is there instead
        else:
            names = sorted(set(index["weight_map"].values()))
            snapshot_download(files.source, revision=files.revision, allow_patterns=names)


def _cached(files: ModelFiles) -> list[Path]:
    """The weights of a hub's model in its cache; none where it lacks some."""
    cached = on_this_machine(files.source, files.revision)
    if cached is not None:
        with contextlib.suppress(ValueError):  # it has the configuration, and not all of the weights
            return checkpoint_files(Path(cached))
    return []


def _sum_of(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _on_hub(files: ModelFiles) -> int | None:
    """The bytes of the weights that the hub has; None when it does not say. Raises UsageError when it cannot be asked."""
    try:
        info = HfApi().model_info(files.source, revision=files.revision, timeout=HUB_TIMEOUT_S, files_metadata=True)
    except Exception as error:  # the errors of its HTTP client have no family in common
        raise files.refusal(
            f"its weights are not all in the hub's cache, and the hub cannot be asked for them ({reason(error)}); fetch "
            "them with `hf download` where there is a network, and take HF_HOME along"
        ) from error
    with files.refused():
        return bytes_of_weights({file.rfilename: file.size or 0 for file in info.siblings or []})


def bytes_of_weights(sizes: Mapping[str, int]) -> int | None:
    """The bytes of the weights that are fetched of a repository with files of these `sizes`; None where it does not say.

    Raises ValueError where it has no weights that are taken.
    """
    if WEIGHTS in sizes:
        return sizes[WEIGHTS] or None
    if WEIGHTS + INDEX_SUFFIX in sizes:
        return sum(size for name, size in sizes.items() if PART.fullmatch(name)) or None
    refused_as_pickled(sizes)
    raise ValueError(f"the hub has no {WEIGHTS} of it and no index of such files: give another version of the model")


def _free_at(folder: Path) -> int | None:
    """The free bytes of the disk that `folder` is on, or will be."""
    for above in (folder, *folder.parents):
        if above.exists():
            return shutil.disk_usage(above).free
    return None
