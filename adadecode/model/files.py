"""Where a model is, and its JSON files, read before transformers is asked. Nothing that they name is run."""

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from adadecode.demo import resolve_model
from adadecode.errors import UsageError
from adadecode.files import from_json
from adadecode.printable import on_one_line

CONFIG = "config.json"
GGUF_SUFFIX = ".gguf"
ALLOWED = "give `demo`, a folder with a transformers model, a GGUF file, or a hub id such as Qwen/Qwen3-8B"
HUB_TIMEOUT_S = 10.0  # to learn whether a model is there: its files have time limits of their own
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model: its `name` as it was given, its folder or hub id, and which `revision` on the hub.

    A model that is one GGUF file has no folder of its own, and no JSON files: `gguf` names the file in `source`. `flag` is
    what named it.
    """

    name: str
    source: str
    revision: str | None = None
    gguf: str | None = None
    flag: str = "--model"

    @property
    def folder(self) -> Path | None:
        """Its folder; None for a model on the hub, and for one in a GGUF file."""
        is_folder = self.gguf is None and os.path.isdir(self.source)  # noqa: PTH112  # any text may be given
        return Path(self.source) if is_folder else None

    @property
    def where(self) -> dict[str, str | None]:
        """What transformers' `from_pretrained` is told beside `source`."""
        return {"revision": self.revision} if self.gguf is None else {"gguf_file": self.gguf}

    def refusal(self, why: str) -> UsageError:
        """The error that says why the model cannot be loaded."""
        return UsageError(f"{self.flag} {self.name!r} cannot be loaded: {why}")

    @contextlib.contextmanager
    def refused(self) -> Generator[None]:
        """Makes the refusal of a ValueError that is raised meanwhile with the reason."""
        try:
            yield
        except UsageError:
            raise
        except ValueError as error:
            raise self.refusal(str(error)) from error

    def json(self, file: str) -> dict[str, Any] | None:
        """The object in the JSON file named `file`; None when there is no such file. Raises ValueError with the reason.

        And UsageError when the hub, which may have it, cannot be asked.
        """
        path = self.path(file)
        return None if path is None else read_object(path)

    def damage(self, file: str) -> str | None:
        """Why the JSON file named `file` cannot be read; None when it can, or is not there."""
        try:
            self.json(file)
        except ValueError as error:
            return str(error)
        return None

    def path(self, file: str) -> Path | None:
        """Where `file` is, fetched from the hub where it is not here; None when there is none. Raises as `json` does."""
        if self.gguf is not None:
            return None
        if self.folder is not None:
            path = self.folder / file
            try:
                return path if path.exists() else None
            except OSError as error:
                raise ValueError(f"{file} cannot be read ({error.strerror})") from error
        try:
            return Path(hf_hub_download(self.source, file, revision=self.revision))
        except LocalEntryNotFoundError as error:  # not in the cache, and the hub gave no answer
            is_known_to_lack = try_to_load_from_cache(self.source, file, revision=self.revision) is not None
            if is_known_to_lack or isinstance(error.__cause__, OfflineModeIsEnabled):
                return None
            why = reason(error.__cause__ or error)
            raise self.refusal(f"the hub could not be asked for its {file} ({why}); try again") from error
        except EntryNotFoundError:
            return None


def find_model(model: str, revision: str | None = None, flag: str = "--model") -> ModelFiles:
    """The files of `model`, which `flag` named.

    Raises UsageError when it is no folder or GGUF file to read, nor, says the hub, a model there.
    The hub is asked only for what can be a hub id, and waits for it are short.
    """
    files = ModelFiles(model, resolve_model(model), revision, flag=flag)
    try:
        if files.folder is not None:
            with os.scandir(files.folder):
                return files
        os.stat(files.source)  # noqa: PTH116  # any text may be given
        path = Path(files.source)
        if path.suffix == GGUF_SUFFIX:
            return ModelFiles(model, str(path.parent), gguf=path.name, flag=flag)
    except PermissionError as error:
        raise files.refusal(f"it cannot be read ({error.strerror})") from error
    except (OSError, ValueError):
        pass  # there is none
    else:
        raise files.refusal(
            "it is a file and no .gguf; give the folder with config.json, the weights and the tokenizer"
        )
    try:
        validate_repo_id(files.source)
    except HFValidationError as error:
        raise files.refusal(f"there is no such folder; {ALLOWED}") from error
    if not isinstance(try_to_load_from_cache(files.source, CONFIG, revision=revision), str):
        _ask_hub(files)
    return files


def on_this_machine(model: str, revision: str | None = None) -> str | None:
    """The folder or GGUF file of `model`, that of the hub's cache where it is a hub id; None where it is not here.

    The hub is not asked.
    """
    source = resolve_model(model)
    if os.path.exists(source):  # noqa: PTH110  # any text may be given
        return source
    try:
        cached = try_to_load_from_cache(source, CONFIG, revision=revision)
    except HFValidationError:
        return None
    return str(Path(cached).parent) if isinstance(cached, str) else None


def _ask_hub(files: ModelFiles) -> None:
    try:
        HfApi().model_info(files.source, revision=files.revision, timeout=HUB_TIMEOUT_S)
    except RevisionNotFoundError as error:
        raise files.refusal(f"the hub has no revision {files.revision!r} of it") from error
    except RepositoryNotFoundError as error:
        why = "no such model on the hub, or one to see only after `hf auth login`"
        raise files.refusal(f"there is no such folder, and {why}; {ALLOWED}") from error
    except OfflineModeIsEnabled as error:
        why = "nor such a model in the hub's cache, and HF_HUB_OFFLINE is set"
        raise files.refusal(f"there is no such folder, {why}; {ALLOWED}") from error
    except HfHubHTTPError:  # a mirror without this call, or a hub in trouble: the download finds out
        pass
    except Exception as error:  # the errors of its HTTP client have no family in common
        why = f"the hub cannot be reached to look for such a model ({reason(error)})"
        raise files.refusal(f"there is no such folder, and {why}; {ALLOWED}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`; raises ValueError with the reason when there is none."""
    try:
        value = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} {damage(path, f'is not JSON ({reason(error)})')}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {shown(value)}, not a JSON object")
    return value


def is_pointer(path: Path) -> bool:
    """Whether the file at `path` is what Git LFS leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def damage(path: Path, otherwise: str) -> str:
    """What is wrong with a file that was not understood, as far as its first bytes say; else `otherwise`, and a remedy."""
    try:
        if is_pointer(path):
            return "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download it again"
        return f"{otherwise if path.stat().st_size else 'is empty'}: download it again"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def reason(error: BaseException) -> str:
    """What another library's error says, short and on one line, after the kind it is of."""
    return f"{type(error).__name__}: {on_one_line(error)}"


def shown(value: object) -> str:
    """`value` as JSON has it, short."""
    return on_one_line(json.dumps(value), 60)
