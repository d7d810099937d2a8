"""The model and heads folders a run depends on, and hashes of what is in them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adadecode.demo import resolve_model
from adadecode.errors import ExitHeadsError
from adadecode.files import readable, short_hash
from adadecode.settings import EvalConfig, fingerprint_of, in_full
from adadecode.tasks import task_domain
from adadecode.tasks.heads import heads_folder, medusa_folder, reads_heads

HASHED_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}


def source_hashes(config: EvalConfig, tasks: tuple[str, ...]) -> dict[str, str]:
    """Hashes of the local files a run reads: the models (a hub model is known by its revision) and each task's heads.

    Raises UsageError when one cannot be read, also as ExitHeadsError.
    """
    hashes = hash_model("--model", config.model, "model")
    if config.decode.draft_model is not None:
        hashes |= hash_model("--draft-model", config.decode.draft_model, "draft_model")
    for task in tasks:
        if (folder := medusa_folder(config, task_domain(task))) is not None:
            with readable("--medusa-heads", folder):
                hashes[f"medusa_files_{task}"] = hash_folder(folder)
    for task, folder in heads_folders(config, tasks).items():
        with readable("--heads", folder):
            hashes[f"heads_files_{task}"] = hash_folder(folder)
    return hashes


def hash_model(flag: str, model: str, of: str) -> dict[str, str]:
    """The hash of `model`, which `flag` named, as that `of` something; none for a hub model. Raises UsageError."""
    path = Path(resolve_model(model))
    with readable(flag, path):
        if path.is_dir():
            return {f"{of}_files": hash_folder(path)}
        return {f"{of}_file": hash_file(path)} if path.is_file() else {}


def heads_folders(config: EvalConfig, tasks: tuple[str, ...]) -> dict[str, Path]:
    """The folder of each of `tasks` whose heads lie in one; raises UsageError when it is not there."""
    if not reads_heads(config):
        return {}
    folders = {task: folder for task in tasks if (folder := heads_folder(config, task_domain(task))) is not None}
    for folder in folders.values():
        with readable("--heads", folder):
            if not folder.is_dir():
                raise ExitHeadsError(
                    f"--heads {str(folder)!r}: not a folder; give one that `adadecode train-heads` wrote"
                )
    return folders


def recomputed_fingerprint(run: Mapping[str, Any]) -> str:
    """The fingerprint that the settings and hashes in a run.json of any version give."""
    return fingerprint_of(run["config"], stored_hashes(run))


def stored_hashes(run: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of a run.json: of the model, the heads and the plan; none where it has none."""
    provenance = run.get("provenance")
    hashes = provenance.get("hashes") if isinstance(provenance, dict) else None
    return hashes if isinstance(hashes, dict) else {}


def hash_folder(folder: Path) -> str:
    """A hash of the names and contents of the model files in `folder`."""
    files = sorted(file for file in folder.iterdir() if file.suffix in HASHED_SUFFIXES)
    return short_hash(*(part for file in files for part in (file.name, _digest(file))))


def hash_file(file: Path) -> str:
    """A hash of the content of `file`."""
    return short_hash(_digest(file))


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def changed_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Which settings of two runs differ, for a person; where none does, what then changed."""
    theirs, ours = in_full(theirs), in_full(ours)
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"different: {', '.join(names)}" if names else "the model, heads or data behind the same settings changed"
